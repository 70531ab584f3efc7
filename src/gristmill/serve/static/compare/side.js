// One of the two answers of a turn.

import { answer } from "../lib/answer.js";
import { element } from "../lib/dom.js";
import { AnswerBody, copyAnswer, failure } from "../lib/message.js";
import { requestFields } from "../lib/settings.js";

export class Side {
  // `contestant` is {model, settings, label, retrieval}; blind, its label is hidden until reveal().
  constructor(contestant, place, blind) {
    this.contestant = contestant;
    this.node = { role: "assistant", content: "" };
    this.failed = false;
    this.controller = new AbortController();
    this.body = new AnswerBody(this.node);
    this.name = element("span", { class: "name" }, blind ? "" : contestant.label);
    this.mark = element("span", { class: "mark" });
    this.heading = element("h2", {}, `${place} answer`, " ", this.name, this.mark);
    this.root = element("article", { class: "side", "aria-busy": "true", "aria-label": `${place} answer` }, this.heading, this.body.root);
  }

  async answer(messages, lookUp) {
    const { model, settings, retrieval } = this.contestant;
    let frame = 0;
    const paint = () => {
      frame = 0;
      this.body.update(true);
    };
    this.body.update(true);
    try {
      const body = { model, messages, ...requestFields(settings), ...(lookUp && retrieval && { retrieval: true }) };
      const changed = () => (frame ||= requestAnimationFrame(paint));
      this.measured = await answer(body, this.node, { signal: this.controller.signal, changed });
    } catch (error) {
      if (this.controller.signal.aborted) this.node.finish = "stopped";
      else {
        this.failed = true;
        this.node.finish = "failed";
        this.root.append(failure(error.message));
      }
    }
    cancelAnimationFrame(frame);
    const told = this.body.end();
    this.below = element("div", { class: "below" }, this.node.content && copyAnswer(this.node), told && element("span", {}, told));
    this.root.append(this.below);
    this.root.removeAttribute("aria-busy");
  }

  stop() {
    this.controller.abort();
  }

  // Speed tells models apart, so it is hidden with the name.
  reveal() {
    this.name.textContent = this.contestant.label;
    const { usage, seconds } = this.measured ?? {};
    if (usage?.completion_tokens) this.below?.append(element("span", {}, `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s`));
  }

  judge(verdict) {
    this.root.classList.add(verdict);
    if (verdict === "won") this.mark.textContent = " better";
  }
}
