// The official OpenAI client against a live server: node openai.mjs BASE_URL. Prints TAP.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { failure, report } from "./report.mjs";

const { check, end } = report();
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Is my data private?" }];
const greedy = { model: "demo", temperature: 0 };

const models = await client.models.list();
check(models.data[0].id === "demo", "models", models.data);
check((await client.models.retrieve("demo")).id === "demo", "one model");

const chat = await client.chat.completions.create({ ...greedy, messages });
const text = chat.choices[0].message.content;
check(text.includes("leaves the building"), "chat", text);
check(chat.usage.total_tokens > 0 && chat.choices[0].finish_reason === "stop", "usage", chat.usage);

const stream = await client.chat.completions.create({
  ...greedy, messages, stream: true, stream_options: { include_usage: true },
});
let pieces = "", usage = null, reason = null;
for await (const chunk of stream) {
  pieces += chunk.choices[0]?.delta?.content ?? "";
  reason = chunk.choices[0]?.finish_reason ?? reason;
  usage = chunk.usage ?? usage;
}
check(pieces === text && reason === "stop", "a stream", pieces);
check(usage.completion_tokens === chat.usage.completion_tokens, "usage of a stream", usage);

const runner = client.chat.completions.stream({ ...greedy, messages });
check((await runner.finalContent()) === text, "the client's own stream helper");

const completion = await client.completions.create({ ...greedy, prompt: "consort is", max_tokens: 4 });
check(completion.choices[0].text.length > 0, "completion", completion);

const response = await client.responses.create({ ...greedy, input: messages[0].content });
check(response.output_text === text && response.status === "completed", "a response", response);
const followed = await client.responses.create({
  ...greedy, input: "Why?", previous_response_id: response.id, max_output_tokens: 8 });
check(followed.usage.input_tokens > response.usage.input_tokens, "a response that follows", followed);
check((await client.responses.retrieve(response.id)).output_text === text, "a response that is kept");
await client.responses.delete(response.id);
check((await failure(() => client.responses.retrieve(response.id))) instanceof OpenAI.NotFoundError,
      "a response that was deleted");
const helper = client.responses.stream({ ...greedy, input: messages[0].content });
let streamed = "";
helper.on("response.output_text.delta", (event) => { streamed += event.delta; });
const whole = await helper.finalResponse();
check(streamed === text && whole.output_text === text, "a streamed response", whole);
const weather = { type: "function", name: "weather", strict: true,
                  parameters: { type: "object", properties: { city: { enum: ["Paris", "Rome"] } },
                                required: ["city"], additionalProperties: false } };
const asked = await client.responses.create({
  ...greedy, tools: [weather], tool_choice: "required", input: "Weather?" });
const call = asked.output.find((item) => item.type === "function_call");
check(["Paris", "Rome"].includes(JSON.parse(call.arguments).city), "a response that calls", asked);
const told = await client.responses.create({ ...greedy, tools: [weather], input: [
  { role: "user", content: "Weather?" }, ...asked.output,
  { type: "function_call_output", call_id: call.call_id, output: "rain" }] });
check(told.status === "completed" && told.usage.input_tokens > asked.usage.input_tokens,
      "and one that is told the result", told);

const { strict, type, ...described } = weather;
const question = { role: "user", content: "Weather?" };
const chosen = { ...greedy, tools: [{ type, function: described }] };
const calling = await client.chat.completions.create({
  ...chosen, messages: [question], tool_choice: { type, function: { name: "weather" } } });
const { message } = calling.choices[0];
check(calling.choices[0].finish_reason === "tool_calls" &&
      ["Paris", "Rome"].includes(JSON.parse(message.tool_calls[0].function.arguments).city),
      "a chat that calls", calling);
const informed = await client.chat.completions.create({ ...chosen, messages: [
  question, message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "rain" }] });
check(informed.usage.prompt_tokens > calling.usage.prompt_tokens, "and one that is told the result",
      informed);

const vectors = await client.embeddings.create({ model: "encoder", input: ["5 6", "7"] });
check(vectors.data.length === 2 && Math.abs(Math.hypot(...vectors.data[0].embedding) - 1) < 1e-3,
      "embeddings, which the client asks for in base64", vectors);

const cancelled = await client.chat.completions.create({ ...greedy, messages, stream: true });
for await (const chunk of cancelled) {
  if (chunk.choices[0].delta.content) break;
}
cancelled.controller.abort();
check((await client.chat.completions.create({ ...greedy, messages })).choices.length === 1,
      "after a stream that was cancelled");

const missing = await failure(() => client.chat.completions.create({ model: "gpt", messages }));
check(missing instanceof OpenAI.NotFoundError && missing.code === "model_not_found",
      "a model that is not there", missing);
const wrong = await failure(() => client.chat.completions.create({ ...greedy, messages: [] }));
check(wrong instanceof OpenAI.BadRequestError && wrong.type === "invalid_request_error",
      "a bad request", wrong);
const long = await failure(
  () => client.completions.create({ model: "demo", prompt: "word ".repeat(30000) }));
check(long instanceof OpenAI.BadRequestError && long.code === "context_length_exceeded",
      "a prompt that is too long", long);

const Answer = z.object({
  kind: z.enum(["yes", "no"]), score: z.number().int().min(1).max(9), words: z.array(z.string().max(8)).max(2),
});
const parsed = await client.chat.completions.parse({
  ...greedy, messages, response_format: zodResponseFormat(Answer, "answer"),
});
check(Answer.safeParse(parsed.choices[0].message.parsed).success, "a response format by zod",
      parsed.choices[0].message);

end();
