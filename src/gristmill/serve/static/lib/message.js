// Questions and answers as DOM, for chat and compare.

import { ending } from "./answer.js";
import { copyButton, element } from "./dom.js";
import { code, Markdown } from "./markdown.js";

// What a person wrote, as written: `code` and ``` fences are set apart, nothing else.
export function plain(text) {
  return text.split(/^```/m).flatMap((part, i) => {
    if (i % 2) {
      const body = part.replace(/^[^\n]*\n?/, "").replace(/\n$/, "");
      return [code(body, part.slice(0, part.indexOf("\n")).trim())];
    }
    const trimmed = i ? part.replace(/^\n/, "") : part;
    return trimmed.split(/`([^`\n]+)`/).map((piece, j) => (j % 2 ? element("code", {}, piece) : piece)).filter(Boolean);
  });
}

export function sources(citations) {
  const rows = citations.map(({ source, line, title, text }) => {
    const place = element("span", { class: "place" }, line ? `${source}:${line}` : source);
    const summary = element("summary", {}, element("span", { class: "title" }, title || source), place);
    return element("li", {}, element("details", {}, summary, element("pre", { tabindex: "0" }, text ?? "")));
  });
  return element("section", { class: "sources", "aria-label": "Sources" }, element("h3", {}, "Sources"), element("ol", {}, ...rows));
}

export function failure(message) {
  return element("p", { class: "failure", role: "alert" }, message);
}

// The body of an answer: reasoning, text, calls, sources. `update()` follows a node that grows.
export class AnswerBody {
  // `tokens` is a Tokens that stands in place of the text, or null.
  constructor(node, tokens = null) {
    this.node = node;
    this.tokens = tokens;
    this.text = element("div", { class: "text" });
    this.markdown = new Markdown(this.text);
    this.calls = element("div", { class: "calls" });
    this.root = element("div", { class: "answer" }, this.text, this.calls);
    if (tokens) this.text.append(tokens.root);
  }

  update(live) {
    const { reasoning, content, tokens, tool_calls: calls } = this.node;
    if (reasoning) this.think(reasoning, live && !content && !calls);
    if (this.tokens) this.tokens.update(tokens ?? []);
    else this.markdown.update(content);
    if (calls) this.calls.replaceChildren(...calls.filter(Boolean).map(call));
    this.root.className = `answer${live ? (content || reasoning || calls ? " writing" : " waiting") : ""}`;
  }

  think(reasoning, now) {
    if (!this.thoughts) {
      this.thoughts = element("div", { class: "thoughts" });
      this.thinking = new Markdown(this.thoughts);
      this.name = element("span", {});
      this.reasoning = element("details", { class: "reasoning", open: now }, element("summary", {}, this.name), this.thoughts);
      this.root.prepend(this.reasoning);
      this.following = now; // opened by itself: closes by itself when the answer begins
    }
    this.name.textContent = now ? "Thinking…" : `Thought in ${reasoning.trim().split(/\s+/).length} words`;
    this.thinking.update(reasoning);
    if (this.following && !now) this.reasoning.open = this.following = false;
  }

  // What stands below an answer that has ended.
  end() {
    const { citations, content } = this.node;
    this.update(false);
    if (citations?.length) this.root.append(sources(citations));
    else if (citations && content) this.root.append(element("p", { class: "note" }, "No passage of the documents supports this answer."));
    return ending(this.node);
  }
}

function call({ function: { name, arguments: given } }) {
  let shown = given;
  try {
    shown = JSON.stringify(JSON.parse(given), null, 2);
  } catch {
    // still on its way, or cut: shown as it is
  }
  const block = code(shown, "json");
  block.querySelector(".code-head span").replaceChildren("calls ", element("b", {}, name));
  return block;
}

export function copyAnswer(node) {
  return copyButton(() => node.content);
}
