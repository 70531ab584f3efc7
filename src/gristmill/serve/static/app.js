// The chat page: keeps the conversation, streams answers, shows sources. No library, no outside request.

const $ = (id) => document.getElementById(id);
const log = $("log"), question = $("question"), status = $("status");
let conversation = []; // {role, content}; a new chat is a new array
let info = null; // what /page-info said
let answering = null; // the AbortController of the answer under way

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function inline(text) {
  return text.split(/`([^`\n]+)`/).map((piece, i) => (i % 2 ? element("code", {}, piece) : piece));
}

// Text with ``` fences and `code` as DOM nodes. Text stays text: nothing the model writes becomes markup.
function rendered(text) {
  const nodes = [];
  text.split(/^```/m).forEach((part, i) => {
    if (i % 2) {
      const code = part.replace(/^[^\n]*\n?/, "").replace(/\n$/, "");
      nodes.push(element("pre", { tabindex: "0" }, element("code", {}, code)));
      return;
    }
    for (const paragraph of part.split(/\n{2,}/)) {
      const body = paragraph.replace(/^\n+|\n+$/g, "");
      if (!body) continue;
      nodes.push(element("p", {}, ...inline(body)));
    }
  });
  return nodes;
}

// The answer token by token, each tinted by how far its probability lies below one half.
function tinted(tokens) {
  const p = element("p");
  const decoder = new TextDecoder();
  for (const token of tokens) {
    const text = decoder.decode(new Uint8Array(token.bytes), { stream: true });
    const probability = Math.exp(token.logprob);
    const label = `${(100 * probability).toFixed(probability < 0.01 ? 2 : 0)} %`;
    const span = element("span", { title: label }, text);
    if (probability < 0.5) {
      span.className = "unsure";
      span.style.setProperty("--doubt", (1 - 2 * probability).toFixed(2));
    }
    p.append(span);
  }
  return [p];
}

function sources(citations) {
  const list = element("ol");
  for (const { source, line, title, text } of citations) {
    const place = element("span", { class: "place" }, `${source}:${line}`);
    const summary = element("summary", {}, element("span", { class: "title" }, title || source), place);
    list.append(element("li", {}, element("details", {}, summary, element("pre", { tabindex: "0" }, text ?? ""))));
  }
  return element("section", { class: "sources", "aria-label": "Sources" }, element("h3", {}, "Sources"), list);
}

// Yields the parsed data of each server-sent event.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection to the server was lost before the answer ended.");
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const event = held.slice(0, end);
      held = held.slice(end + 2);
      if (!event.startsWith("data: ")) continue; // a ping
      if (event === "data: [DONE]") return;
      yield JSON.parse(event.slice(6));
    }
  }
}

async function refusal(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`;
  }
}

function atBottom() {
  return window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 80;
}

function scrollDown() {
  window.scrollTo({ top: document.documentElement.scrollHeight });
}

function setAnswering(controller) {
  answering = controller;
  $("send").hidden = controller !== null;
  $("stop").hidden = controller === null;
  $("new-chat").hidden = conversation.length === 0 && log.children.length === 0;
}

async function answer() {
  const mine = conversation, controller = new AbortController();
  const withSources = Boolean(info?.retrieval) && $("retrieval").checked;
  const withCertainty = $("certainty").checked;
  const body = element("div", { class: "answer waiting" });
  const item = element("li", { class: "assistant", "aria-busy": "true" }, element("span", { class: "unseen" }, "Answer: "), body);
  log.append(item);
  scrollDown();
  setAnswering(controller);
  status.textContent = "The model is answering.";

  let text = "", used = null, citations = null, found = false, finish = null, frame = 0;
  const tokens = [];
  const started = performance.now();
  const paint = () => {
    frame = 0;
    const follow = atBottom();
    body.className = text ? "answer writing" : "answer waiting";
    body.replaceChildren(...(withCertainty && tokens.length ? tinted(tokens) : rendered(text)));
    if (follow) scrollDown();
  };
  let failure = null, stopped = false;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      signal: controller.signal,
      body: JSON.stringify({
        model: info?.model,
        messages: mine,
        stream: true,
        stream_options: { include_usage: true },
        temperature: Number($("temperature").value),
        ...($("max-tokens").value && { max_tokens: Number($("max-tokens").value) }),
        ...(withSources && { retrieval: true }),
        ...(withCertainty && { logprobs: true }),
      }),
    });
    if (!response.ok) throw new Error(await refusal(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      used = event.usage ?? used;
      const choice = event.choices[0];
      if (!choice) continue;
      text += choice.delta.content ?? "";
      tokens.push(...(choice.logprobs?.content ?? []));
      citations = choice.delta.citations ?? citations;
      found = choice.delta.found ?? found;
      finish = choice.finish_reason ?? finish;
      frame ||= requestAnimationFrame(paint);
    }
  } catch (error) {
    if (controller.signal.aborted) stopped = true;
    else failure = error instanceof TypeError ? "The server cannot be reached. Is it still running?" : error.message;
  }
  cancelAnimationFrame(frame);
  paint();
  body.className = "answer";
  item.removeAttribute("aria-busy");
  if (mine !== conversation) return; // a new chat has begun meanwhile
  ended(item, { text, used, citations, found, finish, failure, stopped, seconds: (performance.now() - started) / 1000 });
  setAnswering(null);
  question.focus();
}

function ended(item, { text, used, citations, found, finish, failure, stopped, seconds }) {
  const follow = atBottom();
  const below = element("div", { class: "below" });
  if (failure) {
    item.append(element("p", { class: "failure", role: "alert" }, failure));
    const retry = element("button", { type: "button", class: "retry" }, "Try again");
    retry.addEventListener("click", () => {
      item.remove();
      answer();
    });
    below.append(retry);
  } else {
    if (text) conversation.push({ role: "assistant", content: text });
    if (citations?.length) item.append(sources(citations));
    else if (found) item.append(element("p", { class: "note" }, "No passage of the documents supports this answer."));
    if (text) {
      const copy = element("button", { type: "button" }, "Copy");
      copy.addEventListener("click", async () => {
        await navigator.clipboard.writeText(text);
        copy.textContent = "Copied";
        setTimeout(() => (copy.textContent = "Copy"), 1500);
      });
      below.append(copy);
    }
    if (used?.completion_tokens) below.append(element("span", {}, `${used.completion_tokens} tokens in ${seconds.toFixed(1)} s`));
    if (stopped) below.append(element("span", {}, "Stopped"));
    else if (finish === "length") below.append(element("span", {}, "Cut at the longest answer"));
    else if (!text) below.append(element("span", {}, "The model answered with nothing."));
  }
  item.append(below);
  status.textContent = failure ? "" : stopped ? "Stopped." : `Answer: ${text}`;
  if (follow) scrollDown();
}

function ask(text) {
  if (answering || !text.trim()) return;
  $("welcome").hidden = true;
  for (const retry of document.querySelectorAll(".retry")) retry.remove();
  const last = conversation.at(-1);
  if (last?.role === "user") conversation.pop(); // it was refused or stopped without a word
  conversation.push({ role: "user", content: text.trim() });
  log.append(element("li", { class: "user" }, element("span", { class: "unseen" }, "You: "), ...inline(text.trim())));
  question.value = "";
  fit();
  answer();
}

function fit() { // for browsers without field-sizing
  if (CSS.supports("field-sizing", "content")) return;
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

function newChat() {
  answering?.abort();
  conversation = [];
  setAnswering(null);
  log.replaceChildren();
  $("welcome").hidden = false;
  $("new-chat").hidden = true;
  status.textContent = "New chat.";
  question.focus();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(question.value);
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask(question.value);
  }
});
question.addEventListener("input", fit);
$("stop").addEventListener("click", () => answering?.abort());
$("new-chat").addEventListener("click", newChat);
$("temperature").addEventListener("input", (event) => ($("temperature-value").textContent = event.target.value));
const settings = document.querySelector(".settings");
document.addEventListener("click", (event) => {
  if (!settings.contains(event.target)) settings.open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (settings.open) {
    settings.open = false;
    settings.querySelector("summary").focus();
  } else answering?.abort();
});

function count(n) {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (n >= size) return (n / size).toFixed(n < 10 * size ? 1 : 0) + unit;
  return String(n);
}

try {
  const response = await fetch("/page-info");
  info = await response.json();
  $("model").textContent = `${info.model} · ${count(info.parameters)} parameters · context ${info.context.toLocaleString("en")} tokens`;
  document.title = `${info.model} – Gristmill`;
  $("retrieval-switch").hidden = !info.retrieval;
  $("max-tokens").value = Math.min(256, info.context >> 1);
  for (const example of info.examples) {
    const button = element("button", { type: "button" }, ...inline(example));
    button.addEventListener("click", () => ask(example));
    $("examples").append(element("li", {}, button));
  }
} catch {
  $("model").textContent = "The server cannot be reached.";
}
