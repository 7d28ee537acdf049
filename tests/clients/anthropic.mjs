// Anthropic's client against a live server: node anthropic.mjs BASE_URL. Prints TAP.
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { failure, report } from "./report.mjs";

const { check, end } = report();
const client = new Anthropic({ baseURL: new URL(process.argv[2]).origin, apiKey: "none",
                               maxRetries: 0 });
const messages = [{ role: "user", content: "Is my data private?" }];
const greedy = { model: "demo", max_tokens: 200, temperature: 0 };

const message = await client.messages.create({ ...greedy, messages });
const text = message.content[0].text;
check(text.includes("leaves the building") && message.stop_reason === "end_turn", "a message",
      message);
check(message.usage.output_tokens > 0, "usage", message.usage);

let pieces = "";
for await (const event of await client.messages.create({ ...greedy, messages, stream: true })) {
  if (event.type === "content_block_delta") pieces += event.delta.text;
}
check(pieces === text, "a stream", pieces);

const final = await client.messages.stream({ ...greedy, messages }).finalMessage();
check(final.content[0].text === text && final.stop_reason === "end_turn" &&
      final.usage.output_tokens === message.usage.output_tokens, "the client's own stream helper",
      final);

const counted = await client.messages.countTokens({ model: "demo", messages });
check(counted.input_tokens === message.usage.input_tokens + message.usage.cache_read_input_tokens,
      "tokens are counted", counted);

const weather = { name: "weather", description: "d",
                  input_schema: { type: "object", required: ["city"],
                                  properties: { city: { enum: ["Paris", "Rome"] } } } };
const chosen = { ...greedy, system: [{ type: "text", text: "Be brief." }], tools: [weather] };
const asked = await client.messages.create({
  ...chosen, messages, tool_choice: { type: "tool", name: "weather" } });
const use = asked.content.find((block) => block.type === "tool_use");
check(asked.stop_reason === "tool_use" && ["Paris", "Rome"].includes(use.input.city),
      "a message that uses a tool", asked);
const told = await client.messages.create({ ...chosen, messages: [
  ...messages, { role: "assistant", content: asked.content },
  { role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "rain" }] }] });
check(told.type === "message" && told.usage.input_tokens + told.usage.cache_read_input_tokens >
      asked.usage.input_tokens + asked.usage.cache_read_input_tokens, "and one that is told the result",
      told);

const shape = z.object({ kind: z.enum(["yes", "no"]), places: z.array(z.enum(["a", "b"])), sure: z.boolean() });
const format = zodOutputFormat(shape);
const parsed = await client.messages.parse({ ...greedy, messages, output_config: { format } });
check(shape.safeParse(parsed.parsed_output).success && parsed.stop_reason === "end_turn",
      "an answer by a schema", parsed);
const older = await client.beta.messages.create({ ...greedy, messages, output_format: format });
check(shape.safeParse(JSON.parse(older.content[0].text)).success, "and as it was asked for before", older);
const shaped = await client.messages.stream({ ...greedy, messages, output_config: { format } }).finalMessage();
check(shape.safeParse(JSON.parse(shaped.content[0].text)).success, "a stream by a schema", shaped);
const strict = await client.messages.create({
  ...chosen, messages, tools: [{ ...weather, strict: true }], tool_choice: { type: "auto" } });
check(strict.type === "message" && strict.content.length > 0, "a strict tool that may be used", strict);

const cancelled = client.messages.stream({ ...greedy, messages });
cancelled.on("text", () => cancelled.abort());
try {
  await cancelled.finalMessage();
} catch (error) { // none where the whole answer was there before
  check(error instanceof Anthropic.APIUserAbortError, "a stream that is cancelled", error);
}
check((await client.messages.create({ ...greedy, messages })).type === "message",
      "after a stream that was cancelled");

const missing = await failure(() => client.messages.create({ ...greedy, model: "x", messages }));
check(missing instanceof Anthropic.NotFoundError &&
      missing.error.error.type === "not_found_error", "a model that is not there", missing);
const wrong = await failure(() => client.messages.create({ ...greedy, messages: [] }));
check(wrong instanceof Anthropic.BadRequestError, "a bad request", wrong);

end();
