// Sends a branch of a conversation to the model and grows the answer in it. No DOM.

import { server } from "../lib/api.js";
import { answer, TOP_LOGPROBS } from "../lib/answer.js";
import { requestFields } from "../lib/settings.js";

// The model that answers in a conversation: its own if it is loaded, else the first.
export function modelOf(conversation) {
  const { models } = server.info;
  return models.find(({ name }) => name === conversation.model) ?? models[0];
}

function requestBody(conversation, node, continued, withTokens) {
  const model = modelOf(conversation);
  const { look_up: lookUp = true, ...settings } = conversation.settings;
  const index = model.retrieval && lookUp && !settings.tools?.length;
  const attachments = conversation.attachments(node.id);
  const messages = conversation.messages(node.id);
  return {
    model: model.name,
    messages,
    ...requestFields(settings),
    ...(attachments.length ? { retrieval: { index, attachments } } : index && { retrieval: true }),
    ...(withTokens && { logprobs: true, top_logprobs: TOP_LOGPROBS }),
    ...(continued && { continue_final_message: true }),
  };
}

// Answers below the current node; or, given `node`, goes on with its text. `tell` has started(), changed() and
// ended(), which is called whatever happens. What went wrong is in `conversation.failed`, in words.
export async function respond(conversation, { node = null, withTokens, tell }) {
  if (conversation.running) return;
  const continued = node !== null, before = node?.content;
  conversation.failed = null;
  node ??= conversation.add("assistant", conversation.current, "");
  const controller = new AbortController();
  conversation.running = { node, stop: () => controller.abort() };
  conversation.changed.add(node.id);
  delete node.finish;
  tell.started();
  try {
    await server.ready;
    node.model = modelOf(conversation).name;
    const body = requestBody(conversation, node, continued, withTokens);
    node.measured = await answer(body, node, { signal: controller.signal, changed: tell.changed });
  } catch (error) {
    if (controller.signal.aborted) node.finish = "stopped";
    else conversation.failed = error.message;
  }
  conversation.running = null;
  conversation.changed.add(node.id);
  const empty = !node.content && !node.reasoning && !node.tool_calls;
  if (empty && (conversation.failed || node.finish === "stopped")) conversation.drop(node);
  else if (conversation.failed) node.finish = "failed";
  if (continued && node.content === before && conversation.failed) node.finish = "length"; // as it was
  tell.ended(node);
}
