// Where a question is written: the text, its files, whether to look it up, send and stop.

import { $, element, icon } from "../lib/dom.js";
import { Attachments } from "./attachments.js";

const DRAFT = "gristmill-draft-";

export class Composer {
  // `ask(text, files)`, `stop()`, `running()` and `lookUp(on)` say what to do.
  constructor({ ask, stop, running, lookUp }) {
    Object.assign(this, { ask, running });
    this.attachments = new Attachments();
    this.id = "";
    this.sending = false;
    $("attach").append(icon("attach"));
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    const question = $("question");
    question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    question.addEventListener("input", () => {
      this.fit();
      this.keep();
    });
    $("stop").addEventListener("click", stop);
    $("retrieval").addEventListener("change", () => lookUp($("retrieval").checked));
  }

  // Shows the draft of the conversation `id` ("" for a new one).
  show(id) {
    this.id = id;
    $("question").value = sessionStorage.getItem(DRAFT + id) ?? "";
    this.fit();
    this.focus();
  }

  // A touch screen's keyboard would cover the page.
  focus() {
    if (matchMedia("(hover: hover)").matches) $("question").focus({ preventScroll: true });
  }

  update(model, conversation) {
    const running = this.running();
    $("send").hidden = running;
    $("stop").hidden = !running;
    $("retrieval-switch").hidden = !model?.retrieval;
    $("retrieval").checked = conversation.settings.look_up ?? true;
  }

  keep() {
    const text = $("question").value;
    if (text) sessionStorage.setItem(DRAFT + this.id, text);
    else sessionStorage.removeItem(DRAFT + this.id);
  }

  async send(given = null) {
    const text = (given ?? $("question").value).trim();
    if (this.sending || this.running() || !(text || this.attachments.files.length)) return;
    this.sending = true; // until the files are there
    try {
      const files = await this.attachments.take();
      if (!text && !files.length) return;
      if (given === null) {
        $("question").value = "";
        this.keep();
        this.fit();
      }
      this.ask(text, files);
    } finally {
      this.sending = false;
    }
  }

  fit() { // for browsers without field-sizing
    if (CSS.supports("field-sizing", "content")) return;
    const question = $("question");
    question.style.setProperty("height", "auto");
    question.style.setProperty("height", `${question.scrollHeight}px`);
  }

  examples(texts) {
    $("examples").replaceChildren(...texts.map((text) => {
      const label = text.split(/`([^`\n]+)`/).map((piece, i) => (i % 2 ? element("code", {}, piece) : piece));
      return element("li", {}, element("button", { type: "button", onclick: () => this.send(text) }, ...label));
    }));
  }
}
