// One streamed chat by the official OpenAI client: node stream.mjs BASE_URL MODEL TOKENS QUESTION.
// Prints a line of JSON for each piece of the answer as it comes, and one at its end.
import OpenAI from "openai";

const [baseURL, model, tokens, content] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const print = (value) => console.log(JSON.stringify(value));

try {
  const stream = await client.chat.completions.create({
    model, max_tokens: Number(tokens), temperature: 0, ignore_eos: true, stream: true,
    stream_options: { include_usage: true }, messages: [{ role: "user", content }],
  });
  let reason = null, usage = null;
  for await (const chunk of stream) {
    const piece = chunk.choices[0]?.delta?.content ?? "";
    reason = chunk.choices[0]?.finish_reason ?? reason;
    usage = chunk.usage ?? usage;
    if (piece !== "")
      print({ piece });
  }
  print({ reason, tokens: usage?.completion_tokens });
} catch (error) {
  print({ error: `${error.status ?? ""} ${error.message}` });
}
