// Shows the branch of a conversation: each question and answer with what can be done to it.

import { $, copyButton, element, icon, iconButton } from "../lib/dom.js";
import { AnswerBody, copyAnswer, failure, plain } from "../lib/message.js";
import { textOf, Tokens } from "./tokens.js";

export class View {
  // What a person does is told to `does`: edit(node, text), again(node), choose(node), goOn(node),
  // branchAt(node, tokens), results(node, texts).
  constructor(does) {
    this.does = does;
    this.withTokens = false;
    this.live = null; // the body of the answer under way
  }

  render(conversation) {
    this.conversation = conversation;
    this.live = null;
    const path = conversation.path();
    $("welcome").hidden = path.length > 0 || conversation.failed;
    $("chat-title").textContent = conversation.title || "New chat";
    $("log").replaceChildren(...path.map((node) => this.item(node, node === path.at(-1))));
    if (conversation.failed && !conversation.running) this.fail(path.at(-1), conversation.failed);
  }

  item(node, last) {
    if (node.role === "user") return this.question(node);
    if (node.role === "tool") return this.result(node);
    return this.answer(node, last);
  }

  question(node) {
    const files = (node.attachments ?? []).map(({ name }) =>
      element("li", { class: "file ready" }, icon("attach"), element("span", { class: "file-name" }, name)));
    const item = element("li", { class: "user", "data-node": node.id },
      element("span", { class: "unseen" }, "You: "),
      files.length > 0 && element("ul", { class: "files", "aria-label": "Attached files" }, ...files),
      element("div", { class: "bubble" }, ...plain(node.content)),
      element("div", { class: "below" }, this.switcher(node),
        element("button", { type: "button", onclick: () => this.edit(item, node) }, icon("edit"), "Edit"),
        copyButton(() => node.content)));
    return item;
  }

  result(node) {
    return element("li", { class: "tool-result", "data-node": node.id },
      element("span", { class: "hint" }, "Result given: "), element("pre", { tabindex: "0" }, node.content));
  }

  answer(node, last) {
    const running = this.conversation.running?.node === node;
    const shown = this.withTokens && (running || node.tokens?.length) ? this.tokens(node, running) : null;
    const body = new AnswerBody(node, shown);
    const item = element("li", { class: "assistant", "aria-busy": running && "true", "data-node": node.id },
      element("span", { class: "unseen" }, "Answer: "), body.root);
    if (running) {
      this.live = body;
      body.update(true);
      return item;
    }
    const told = body.end();
    if (this.withTokens && !shown && node.content) {
      body.root.append(element("p", { class: "note" }, "This answer was written without its tokens. Regenerate it to see them."));
    }
    if (last && node.tool_calls?.length) item.append(this.results(node));
    item.append(this.below(node, told, last));
    return item;
  }

  tokens(node, running) {
    const whole = !running && !node.citations && textOf(node.tokens) === node.content;
    return new Tokens(whole ? (index, other) => this.does.branchAt(node, [...node.tokens.slice(0, index), { ...node.tokens[index], ...other }]) : null);
  }

  below(node, told, last) {
    const { usage, seconds } = node.measured ?? {};
    const goOn = last && node.content && ["length", "stopped"].includes(node.finish) && !node.citations;
    return element("div", { class: "below" }, this.switcher(node), node.content && copyAnswer(node),
      element("button", { type: "button", onclick: () => this.does.again(node) }, icon("redo"), "Regenerate"),
      goOn && element("button", { type: "button", onclick: () => this.does.goOn(node) }, "Continue"),
      told && element("span", {}, told),
      this.manyModels && node.model && element("span", {}, node.model),
      usage?.completion_tokens > 0 && element("span", {}, `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s`));
  }

  // "‹ 2/3 ›" between the branches at a place.
  switcher(node) {
    const all = this.conversation.siblings(node), at = all.indexOf(node);
    if (all.length < 2) return null;
    const step = (name, label, to) => iconButton(name, label, () => {
      this.does.choose(to);
      const buttons = [...document.querySelectorAll(`[data-node="${to.id}"] .switcher button:not(:disabled)`)];
      (buttons.find((one) => one.ariaLabel === label) ?? buttons[0])?.focus();
    }, { disabled: !to });
    return element("span", { class: "switcher", role: "group", "aria-label": "Versions" },
      step("left", "Previous version", all[at - 1]), element("span", {}, `${at + 1}/${all.length}`), step("right", "Next version", all[at + 1]));
  }

  edit(item, node) {
    const area = element("textarea", { "aria-label": "Edit the question", rows: 2 });
    area.value = node.content;
    const close = () => {
      item.replaceWith(this.question(node));
      document.querySelector(`[data-node="${node.id}"] .below button:not([aria-label])`)?.focus();
    };
    const send = () => area.value.trim() && this.does.edit(node, area.value.trim());
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    item.classList.add("editing");
    item.replaceChildren(area, element("div", { class: "actions" },
      element("button", { type: "button", class: "quiet", onclick: close }, "Cancel"),
      element("button", { type: "button", class: "strong", onclick: send }, "Send")));
    area.focus();
  }

  // What the called tools answered, typed in by the person.
  results(node) {
    const calls = node.tool_calls.filter(Boolean);
    const areas = calls.map(({ function: { name } }) =>
      element("textarea", { rows: 2, "aria-label": `Result of ${name}`, placeholder: `What ${name} answers` }));
    return element("form", {
      class: "results",
      onsubmit: (event) => {
        event.preventDefault();
        this.does.results(node, areas.map((area) => area.value));
      },
    }, ...areas, element("button", { type: "submit", class: "quiet" }, calls.length > 1 ? "Send the results" : "Send the result"));
  }

  fail(node, message) {
    const retry = element("button", { type: "button", class: "retry", onclick: () => this.does.again(node) }, icon("redo"), "Try again");
    const last = $("log").lastElementChild;
    const place = node?.role === "assistant" ? last : $("log").appendChild(element("li", { class: "assistant" }));
    place.querySelector(".below")?.remove();
    place.append(failure(message), element("div", { class: "below" }, node?.role === "assistant" && this.switcher(node), retry));
  }
}
