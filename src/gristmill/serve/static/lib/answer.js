// One answer under way: asks /v1/chat/completions and folds the stream into a node of the conversation.

import { ApiError, events, request } from "./api.js";

export const TOP_LOGPROBS = 6;

// Streams an answer into `node` ({content, reasoning?, tool_calls?, tokens?, citations?, finish?}); calls `changed`
// after each piece. Returns {usage, seconds}. Throws ApiError or AbortError; what came before stays in `node`.
export async function answer(body, node, { signal, changed = () => {} }) {
  const started = performance.now();
  let usage = null;
  const response = await request("/v1/chat/completions", {
    method: "POST",
    signal,
    body: { ...body, stream: true, stream_options: { include_usage: true } },
  });
  for await (const event of events(response)) {
    if (event.error) throw new ApiError(event.error.message, 500);
    usage = event.usage ?? usage;
    const choice = event.choices[0];
    if (!choice) continue;
    fold(node, choice);
    changed();
  }
  return { usage, seconds: (performance.now() - started) / 1000 };
}

function fold(node, { delta, logprobs, finish_reason: finish }) {
  if (delta.content) node.content += delta.content;
  if (delta.reasoning_content) node.reasoning = (node.reasoning ?? "") + delta.reasoning_content;
  for (const part of delta.tool_calls ?? []) {
    const calls = (node.tool_calls ??= []);
    const call = (calls[part.index] ??= { id: part.id, type: "function", function: { name: "", arguments: "" } });
    call.function.name += part.function?.name ?? "";
    call.function.arguments += part.function?.arguments ?? "";
  }
  if (logprobs?.content?.length) (node.tokens ??= []).push(...logprobs.content.map(slim));
  // An empty list: looked up and found, but nothing supports the answer.
  if (delta.citations && (delta.citations.length || delta.found)) node.citations = delta.citations;
  if (finish) node.finish = finish;
}

const encoder = new TextEncoder();

// A token without the bytes that its text already says: they are most of what a kept conversation would weigh.
function slim({ token, logprob, bytes, top_logprobs: top }) {
  const said = bytes && !token.includes("\ufffd") && encoder.encode(token).length === bytes.length;
  return { token, logprob, ...(bytes && !said && { bytes }), ...(top && { top_logprobs: top.map(slim) }) };
}

const ENDINGS = { stopped: "Stopped", length: "Cut at the longest answer", content_filter: "Held back by the server", failed: "Broken off" };

// How an ended answer is told in words, or "".
export function ending({ finish, content, reasoning, tool_calls: calls }) {
  if (!finish) return "Not finished";
  return ENDINGS[finish] ?? (content || reasoning || calls?.length ? "" : "The model answered with nothing.");
}
