// The answer token by token: each tinted by how likely it was, its alternatives shown on click or Enter.

import { float } from "../lib/dialog.js";
import { element } from "../lib/dom.js";

const VISIBLE = new Map([["\n", "⏎"], ["\t", "⇥"], ["\r", "␍"], [" ", "␣"]]);

export function percent(logprob) {
  const p = 100 * Math.exp(logprob);
  if (p >= 99.95) return "100 %";
  if (p >= 10) return `${p.toFixed(1)} %`;
  if (p >= 0.01) return `${p.toPrecision(2)} %`;
  return "< 0.01 %";
}

// A token as one can see it: white space by its sign, half a character by its bytes.
function visible({ token, bytes }) {
  if (bytes && token.includes("\ufffd")) return bytes.map((b) => `<${b.toString(16).padStart(2, "0")}>`).join("");
  return token === "" ? "(nothing)" : token.replace(/[\n\t\r]|^ +| +$/g, (space) => [...space].map((one) => VISIBLE.get(one)).join(""));
}

// One tab stop; arrows move from token to token, Enter opens. `update(tokens)` adds what is new.
// `go(index, alternative)`, when given, continues from an alternative.
export class Tokens {
  constructor(go = null) {
    this.go = go;
    this.tokens = [];
    this.decoder = new TextDecoder();
    this.root = element("div", {
      class: "tokens", role: "group",
      "aria-label": "Tokens of the answer. Arrow keys move between them, Enter shows the alternatives.",
      onkeydown: (event) => this.key(event),
      onclick: (event) => this.open(event.target.closest(".token")),
    });
  }

  update(tokens) {
    for (let i = this.root.children.length; i < tokens.length; i++) this.root.append(this.token(tokens[i], i));
    this.tokens = tokens;
  }

  token(entry, index) {
    const bytes = entry.bytes ?? [...new TextEncoder().encode(entry.token)];
    const text = this.decoder.decode(new Uint8Array(bytes), { stream: true });
    const span = element("span", {
      class: "token", role: "button", tabindex: index === 0 ? "0" : "-1", "data-index": index, "aria-haspopup": "dialog",
      "aria-label": `${visible(entry)}, ${percent(entry.logprob)}`, title: percent(entry.logprob),
    });
    text.split("\n").forEach((piece, i) => span.append(...(i ? [element("i", {}, "⏎"), "\n"] : []), piece));
    span.style.setProperty("--doubt", (1 - Math.exp(entry.logprob)).toFixed(3));
    return span;
  }

  key(event) {
    const span = event.target.closest(".token");
    if (!span || event.target !== span) return;
    const at = Number(span.dataset.index), last = this.root.children.length - 1;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.open(span);
      return;
    }
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: this.line(span, 1), ArrowUp: this.line(span, -1), Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.focus(this.root.children[Math.max(0, Math.min(last, to))]);
  }

  focus(span) {
    for (const one of this.root.querySelectorAll('[tabindex="0"]')) one.tabIndex = -1;
    span.tabIndex = 0;
    span.focus();
  }

  // The index of the token above or below.
  line(span, way) {
    const { left, top } = span.getBoundingClientRect();
    let best = Number(span.dataset.index), row = null;
    for (let at = best + way; this.root.children[at]; at += way) {
      const box = this.root.children[at].getBoundingClientRect();
      if (Math.abs(box.top - top) < 4) continue;
      row ??= box.top;
      if (Math.abs(box.top - row) >= 4) break;
      best = at;
      if (way > 0 ? box.right > left : box.left <= left) break;
    }
    return best;
  }

  open(span) {
    if (!span) return;
    this.focus(span);
    const index = Number(span.dataset.index), entry = this.tokens[index];
    const ranked = [...(entry.top_logprobs ?? [])].sort((a, b) => b.logprob - a.logprob);
    const same = (one) => one.token === entry.token && String(one.bytes) === String(entry.bytes);
    if (!ranked.some(same)) ranked.push(entry);
    const rows = ranked.map((one) => this.row(one, same(one), ranked[0].logprob, index));
    const heading = element("h3", { tabindex: "-1" }, element("code", {}, visible(entry)));
    const box = float(span, element("div", {},
      heading,
      element("p", {}, `Token ${index + 1} of ${this.tokens.length}, ${percent(entry.logprob)}, log-probability ${entry.logprob.toFixed(3)}`),
      element("table", {},
        element("thead", { class: "unseen" }, element("tr", {},
          ["Token", "Share", "Probability"].map((name) => element("th", { scope: "col" }, name)))),
        element("tbody", {}, ...rows)),
      this.go && element("p", { class: "hint" }, "Choose another token to continue from it in a new branch.")),
    { class: "alternatives", role: "dialog", "aria-label": `Token ${visible(entry)} and its alternatives` });
    box.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const next = way && this.root.children[index + way];
      if (!next) return;
      box.hidePopover();
      this.open(next);
    });
    (box.querySelector("button") ?? heading).focus();
  }

  row(one, chosen, most, index) {
    const bar = element("span", { class: "bar-of" });
    bar.style.setProperty("--share", Math.exp(one.logprob - most).toFixed(4));
    const name = element("code", {}, visible(one));
    const whole = !textOf([...this.tokens.slice(0, index), one]).includes("\ufffd"); // no half of a character
    const pick = this.go && !chosen && whole
      ? element("button", { type: "button", title: "Continue from this token", onclick: (event) => {
        event.target.closest("[popover]").hidePopover();
        this.go(index, one);
      } }, name)
      : name;
    return element("tr", { class: chosen && "chosen" },
      element("td", {}, pick, chosen && element("span", { class: "unseen" }, " (chosen)")),
      element("td", {}, bar), element("td", {}, percent(one.logprob)));
  }
}

// The text of tokens, whose characters may be spread over several.
export function textOf(tokens) {
  return new TextDecoder().decode(new Uint8Array(tokens.flatMap(({ token, bytes }) => bytes ?? [...new TextEncoder().encode(token)])));
}
