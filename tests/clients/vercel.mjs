// Vercel's AI SDK against a live server: node vercel.mjs BASE_URL. Prints TAP.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embed, embedMany, generateText, stepCountIs, streamText,
         tool } from "ai";
import { z } from "zod";
import { failure, report } from "./report.mjs";

const { check, end } = report();
const provider = createOpenAICompatible({ name: "consort", baseURL: process.argv[2],
                                          includeUsage: true,
                                          supportsStructuredOutputs: true });
const messages = [{ role: "user", content: "Is my data private?" }];
const greedy = { model: provider("demo"), temperature: 0, maxRetries: 0 };

const chat = await generateText({ ...greedy, messages });
check(chat.text.includes("leaves the building") && chat.finishReason === "stop", "chat", chat.text);
check(chat.usage.outputTokens > 0 && chat.usage.inputTokens > 0, "usage", chat.usage);

const stream = streamText({ ...greedy, messages });
let pieces = "";
for await (const piece of stream.textStream) pieces += piece;
check(pieces === chat.text && (await stream.finishReason) === "stop", "a stream", pieces);
check((await stream.usage).outputTokens === chat.usage.outputTokens, "usage of a stream");

const tools = { weather: tool({ description: "The weather of a city.",
                                inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }),
                                execute: async ({ city }) => `rain in ${city}` }) };
const rounds = await generateText({
  ...greedy, messages, tools, stopWhen: stepCountIs(2),
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }) });
const [first, second] = rounds.steps;
check(rounds.steps.length === 2 && first.finishReason === "tool-calls" &&
      ["Paris", "Rome"].includes(first.toolCalls[0].input.city) &&
      first.toolResults[0].output === `rain in ${first.toolCalls[0].input.city}` &&
      second.usage.inputTokens > first.usage.inputTokens, "a call of a tool in two rounds",
      rounds.steps.map((step) => step.content));

const shaped = await generateText({ ...greedy, messages, output: Output.object({
  schema: z.object({ n: z.number().int().min(3).max(5), kind: z.enum(["a", "b"]) }) }) });
check(shaped.output.n >= 3 && shaped.output.n <= 5 && ["a", "b"].includes(shaped.output.kind),
      "an answer by a schema", shaped.text);

const encoder = provider.embeddingModel("encoder");
const { embeddings } = await embedMany({ model: encoder, values: ["5 6", "7"], maxRetries: 0 });
const { embedding } = await embed({ model: encoder, value: "5 6", maxRetries: 0 });
check(embeddings.length === 2 && embedding.length > 0 &&
      embedding.every((x, i) => x === embeddings[0][i]), "embeddings", embeddings);

const controller = new AbortController();
const cancelled = streamText({ ...greedy, messages, abortSignal: controller.signal });
for await (const piece of cancelled.textStream) {
  if (piece) controller.abort();
}
check((await generateText({ ...greedy, messages })).text === chat.text,
      "after a stream that was cancelled");

const missing = await failure(() => generateText({ ...greedy, model: provider("x"), messages }));
check(APICallError.isInstance(missing) && missing.statusCode === 404 && missing.message.includes("demo"),
      "a model that is not there", missing);
const long = await failure(() => generateText({ ...greedy, prompt: "word ".repeat(30000) }));
check(APICallError.isInstance(long) && long.statusCode === 400 && long.message.includes("context"),
      "a prompt that is too long", long);

end();
