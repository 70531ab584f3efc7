// What a model is, and how to call it.

import { bytes, count, element } from "../lib/dom.js";
import { code } from "../lib/markdown.js";

export function modelCard(model) {
  const facts = [
    ["Architecture", model.architecture],
    ["Parameters", count(model.parameters)],
    ["Weights", `${bytes(model.weights_bytes)}${model.quantization ? `, ${model.quantization}` : ""}`],
    ["Cache", `${bytes(model.cache_bytes)}, ${model.cache_tokens.toLocaleString("en")} tokens`],
    ["Context", `${model.context.toLocaleString("en")} tokens`],
    ["Adapters", model.adapters.length ? model.adapters.map((one) => one.name ?? one).join(", ") : "none"],
  ];
  return element("div", { class: "card" },
    element("h2", {}, model.name),
    element("dl", { class: "facts" }, ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    element("p", { class: "engine" }, model.engine));
}

export function waysToCall(name, keyed) {
  const url = `${location.origin}/v1`, model = JSON.stringify(name);
  const shell = `curl ${url}/chat/completions \\
  -H "content-type: application/json" \\${keyed ? '\n  -H "authorization: Bearer $GRISTMILL_KEY" \\' : ""}
  -d '{"model": ${model.replaceAll("'", "'\\''")},
       "messages": [{"role": "user", "content": "Hello"}]}'`;
  const python = `${keyed ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(
    base_url="${url}",
    api_key=${keyed ? 'os.environ["GRISTMILL_KEY"]' : '"none needed"'},
)
answer = client.chat.completions.create(
    model=${model},
    messages=[{"role": "user", "content": "Hello"}],
)
print(answer.choices[0].message.content)`;
  return element("div", { class: "calls-by" }, code(shell, "shell"), code(python, "python"));
}
