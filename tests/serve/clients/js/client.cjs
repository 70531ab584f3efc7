// OpenAI's JavaScript SDK asks a server; what it makes of the answers is written as one JSON document.
// usage: node client.cjs BASE_URL FOLDER_WITH_node_modules
const { createRequire } = require("node:module");

const [baseURL, modules] = process.argv.slice(2);
const OpenAI = createRequire(`${modules}/`)("openai");
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "How is the weather in Oslo?" }];
const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      parameters: {
        type: "object",
        properties: { city: { enum: ["Oslo", "Bergen"] } },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
];
const thinker = { model: "thinker", temperature: 0, messages };
const plain = { model: "plain", temperature: 1, seed: 7, max_completion_tokens: 20, messages };

async function joined(request) {
  const runner = client.chat.completions.stream({ ...request, stream_options: { include_usage: true } });
  return await runner.finalChatCompletion();
}

async function refused(ask) {
  try {
    await ask();
  } catch (error) {
    return {
      name: error.constructor.name,
      status: error.status,
      code: error.code,
      param: error.param,
      type: error.type,
    };
  }
  return null;
}

async function main() {
  const told = {};
  told.whole = await client.chat.completions.create({ ...plain, logprobs: true, top_logprobs: 2, n: 2 });
  told.streamed = await joined({ ...plain, logprobs: true, top_logprobs: 2, n: 2 });
  told.called = await client.chat.completions.create({ ...thinker, tools });
  told.calledStreamed = await joined({ ...thinker, tools });
  told.forced = await client.chat.completions.create({
    ...plain,
    max_completion_tokens: 100,
    tools,
    tool_choice: { type: "function", function: { name: "weather" } },
    parallel_tool_calls: false,
  });
  told.completion = await client.completions.create({ model: "plain", prompt: "Heaps", max_tokens: 8, seed: 3 });
  told.pieces = [];
  for await (const chunk of await client.completions.create({
    model: "plain",
    prompt: "Heaps",
    max_tokens: 8,
    seed: 3,
    stream: true,
  })) {
    told.pieces.push(chunk.choices[0].text);
  }
  told.embedding = (await client.embeddings.create({ model: "plain", input: "Heaps" })).data[0].embedding;
  told.models = [];
  for await (const model of client.models.list()) told.models.push(model.id);
  told.stopped = [];
  const stream = await client.chat.completions.create({ ...plain, max_completion_tokens: 900, stream: true });
  for await (const chunk of stream) {
    told.stopped.push(chunk.choices[0].delta.content);
    if (told.stopped.length === 5) break;
  }
  told.refusals = [
    await refused(() => client.chat.completions.create({ ...plain, model: "gpt-9" })),
    await refused(() => client.chat.completions.create({ ...plain, n: 0 })),
    await refused(() => client.chat.completions.create({ ...plain, max_completion_tokens: 1e6, stream: true })),
    await refused(() => client.models.retrieve("none of them")),
  ];
  process.stdout.write(JSON.stringify(told));
}

main();
