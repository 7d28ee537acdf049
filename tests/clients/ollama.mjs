// Ollama's client against a live server: node ollama.mjs BASE_URL. Prints TAP.
import { Ollama } from "ollama";
import { failure, report } from "./report.mjs";

const { check, end } = report();
const client = new Ollama({ host: new URL(process.argv[2]).origin });
const messages = [{ role: "user", content: "Is my data private?" }];
const greedy = { model: "demo", options: { temperature: 0 } };

const { models } = await client.list();
check(models[0].name === "demo:latest", "models", models);
const shown = await client.show({ model: "demo" });
check(shown.capabilities.includes("completion"), "show", shown);

const chat = await client.chat({ ...greedy, messages });
const text = chat.message.content;
check(text.includes("leaves the building") && chat.done_reason === "stop", "chat", chat);
check(chat.prompt_eval_count > 0 && chat.eval_count > 0 && chat.eval_duration > 0, "counts", chat);

let pieces = "", last = null;
for await (const part of await client.chat({ ...greedy, messages, stream: true })) {
  pieces += part.message.content;
  last = part;
}
check(pieces === text && last.done && last.eval_count === chat.eval_count, "a stream", pieces);

const generated = await client.generate({ ...greedy, prompt: messages[0].content });
check(generated.response === text, "generate", generated);
// A call that the model writes itself; the format makes sure that it does.
const parameters = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"],
                     additionalProperties: false };
const weather = { type: "function", function: { name: "weather", description: "d", parameters } };
const calls = { type: "object", properties: { name: { const: "weather" }, arguments: parameters },
                required: ["name", "arguments"], additionalProperties: false };
const question = { role: "user", content: "What is the weather?" };
const asked = await client.chat({ ...greedy, tools: [weather], format: calls, messages: [question] });
const [call] = asked.message.tool_calls ?? [];
check(asked.done_reason === "stop" && asked.message.content === "" && call?.function.name === "weather" &&
      ["Paris", "Rome"].includes(call.function.arguments.city), "a call of a tool", asked);
const told = await client.chat({ ...greedy, tools: [weather], messages: [
  question, asked.message, { role: "tool", tool_name: "weather", content: "rain in " + call?.function.arguments.city }] });
check(told.done && told.prompt_eval_count > asked.prompt_eval_count, "and an answer to its result", told);
let streamed = [];
for await (const part of await client.chat({ ...greedy, tools: [weather], format: calls, messages: [question],
                                             stream: true }))
  streamed = streamed.concat(part.message.tool_calls ?? []);
check(streamed.length === 1 && streamed[0].function.arguments.city === call?.function.arguments.city,
      "a streamed call", streamed);
check((await client.ps()).models[0].name === "demo:latest", "ps");

const embedded = await client.embed({ model: "encoder", input: ["5 6", "7"] });
check(embedded.embeddings.length === 2 && embedded.embeddings[0].length > 0, "embeddings", embedded);

const cancelled = await client.generate({ ...greedy, prompt: "a", stream: true });
try {
  for await (const part of cancelled) {
    if (part.response) cancelled.abort();
  }
} catch (error) { // none where the whole answer was there before
  check(error.name === "AbortError", "a stream that is cancelled", error);
}
check((await client.generate({ ...greedy, prompt: "a" })).done, "after a stream that was cancelled");

const missing = await failure(() => client.chat({ model: "x", messages }));
check(missing?.status_code === 404 && missing.error.includes("demo"), "a model that is not there",
      missing);
const format = await failure(() => client.chat({ ...greedy, messages, format: "xml" }));
check(format?.status_code === 400 && format.error.includes("format"), "a format", format);
const schema = { type: "object", properties: { n: { type: "integer", minimum: 3, maximum: 5 } },
                 required: ["n"] };
const shaped = JSON.parse((await client.chat({ ...greedy, messages, format: schema })).message.content);
check(shaped.n >= 3 && shaped.n <= 5, "a format by a schema", shaped);

end();
