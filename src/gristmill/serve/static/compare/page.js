// The compare page: one prompt, two answers at once, and a vote. Blind, names are hidden until the vote.

import { server } from "../lib/api.js";
import { $, announce, element, notice } from "../lib/dom.js";
import { Side } from "./side.js";
import { choices, Setup } from "./setup.js";
import { Tally } from "./tally.js";
import { sendVote } from "./votes.js";

const STATES = { ready: "ready", answering: "answering", voting: "voting" };

export function mount(section) {
  const compare = new Compare(section);
  return { show: (_, first) => first && compare.focus(), hide: () => {} };
}

class Compare {
  constructor(section) {
    this.section = section;
    this.history = []; // messages that both models are sent: the better answer goes on
    this.turn = null; // {item, prompt, sides, state}
    this.setup = new Setup(() => this.restart());
    this.tally = new Tally();
    this.log = element("ol", { class: "log turns", "aria-label": "Comparison" });
    this.bar = this.voteBar();
    this.welcome = element("div", { class: "welcome" }, element("h2", {}, "Which answers better?"),
      element("p", {}, "One prompt, two answers at once. Say which is better, and the models’ score grows below."));
    section.append(element("div", { class: "inner" },
      element("h1", { id: "compare-title", class: "unseen" }, "Compare"),
      this.setup.root, this.welcome, this.log), this.composer(), element("div", { class: "inner" }, this.tally.root));
    document.addEventListener("keydown", (event) => this.key(event));
    this.state(STATES.ready);
    server.ready.then((info) => {
      this.setup.fill(info);
      this.tally.refresh(info);
    });
  }

  composer() {
    this.question = element("textarea", {
      id: "prompt", rows: "1", placeholder: "Ask both", "aria-label": "Your prompt for both", autocomplete: "off",
    });
    this.question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.ask();
    });
    this.send = element("button", { type: "submit", class: "strong" }, "Ask both");
    this.stop = element("button", { type: "button", class: "strong", onclick: () => this.stopBoth() }, "Stop both");
    this.anew = element("button", { type: "button", class: "quiet", onclick: () => this.restart(true) }, "Start anew");
    const form = element("form", { class: "composer", "aria-label": "Ask both models", onsubmit: (event) => {
      event.preventDefault();
      this.ask();
    } }, this.question, element("div", { class: "bar" },
      this.anew, element("span", { class: "keys" }, element("kbd", {}, "Enter"), " asks both"), this.send, this.stop));
    return element("div", { class: "dock" }, this.bar, form);
  }

  voteBar() {
    this.reason = element("input", {
      id: "reason", maxlength: 4000, placeholder: "Why? (optional, before the vote)", "aria-label": "Reason for the vote",
      autocomplete: "off",
    });
    this.buttons = choices.map(({ choice, key, label }) =>
      element("button", { type: "button", onclick: () => this.vote(choice) }, element("kbd", {}, key), ` ${label}`));
    return element("div", { class: "vote", role: "group", "aria-label": "Your vote" }, ...this.buttons, this.reason);
  }

  state(state) {
    this.now = state;
    this.send.hidden = state === STATES.answering;
    this.stop.hidden = state !== STATES.answering;
    this.bar.hidden = state !== STATES.voting;
    this.anew.hidden = !this.turn;
    this.welcome.hidden = Boolean(this.turn);
    this.setup.lock(state === STATES.answering);
  }

  focus() {
    if (matchMedia("(hover: hover)").matches) this.question.focus();
  }

  stopBoth() {
    this.turn?.sides.forEach((side) => side.stop());
  }

  restart(focus = false) {
    this.stopBoth();
    this.turn = null;
    this.history = [];
    this.log.replaceChildren();
    this.state(STATES.ready);
    if (focus) this.question.focus();
  }

  async ask() {
    const prompt = this.question.value.trim();
    if (!prompt || this.now === STATES.answering) return;
    this.question.value = "";
    this.settle();
    await server.ready;
    const { contestants, blind, lookUp } = this.setup.read();
    if (blind && crypto.getRandomValues(new Uint8Array(1))[0] & 1) contestants.reverse();
    this.history.push({ role: "user", content: prompt });
    const sides = contestants.map((contestant, i) => new Side(contestant, i ? "Second" : "First", blind));
    const item = element("li", {},
      element("div", { class: "user" }, element("span", { class: "unseen" }, "You: "), element("div", { class: "bubble" }, prompt)),
      element("div", { class: "pair" }, ...sides.map((side) => side.root)));
    this.log.append(item);
    const turn = (this.turn = { item, prompt: [...this.history], sides, blind });
    this.state(STATES.answering);
    announce("Both models are answering.");
    item.scrollIntoView({ block: "start" });
    await Promise.all(sides.map((side) => side.answer(turn.prompt, lookUp)));
    if (this.turn !== turn) return; // started anew meanwhile
    const whole = sides.every((side) => side.node.content && !side.failed);
    this.state(whole ? STATES.voting : STATES.ready);
    if (!whole) turn.closed = true;
    announce(whole ? "Both have answered. Vote with 1, 2, 3 or 4." : "The answers cannot be compared.");
    if (whole) this.buttons[0].focus({ preventScroll: true });
  }

  // What both go on from: the better answer, or the first.
  settle(winner = 0) {
    const { turn } = this;
    if (!turn || turn.settled) return;
    turn.settled = true;
    const side = [turn.sides[winner], ...turn.sides].find((one) => one.node.content);
    if (side) this.history.push({ role: "assistant", content: side.node.content });
    else this.history.pop();
    for (const one of turn.sides) one.reveal();
  }

  async vote(choice) {
    const { turn } = this;
    if (this.now !== STATES.voting) return;
    this.state(STATES.ready);
    try {
      await sendVote(turn, choice, this.reason.value.trim(), this.setup.annotator);
    } catch (error) {
      this.state(STATES.voting);
      notice(`The vote did not count: ${error.message}`, { label: "Try again", run: () => this.vote(choice) }, 15);
      return;
    }
    this.reason.value = "";
    const winner = { first: 0, second: 1 }[choice];
    turn.sides.forEach((side, i) => side.judge(winner === undefined ? choice : i === winner ? "won" : "lost"));
    this.settle(winner);
    const told = choices.find((one) => one.choice === choice).told;
    turn.item.append(element("p", { class: "note" }, `${told} The next prompt goes on from the ${winner === 1 ? "second" : "first"} answer.`));
    announce(told);
    this.tally.refresh(server.info);
    this.focus();
  }

  key(event) {
    if ($("compare").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.key === "Escape") {
      if (this.now === STATES.answering) this.stopBoth();
      else if (document.activeElement === this.reason) this.buttons[0].focus();
      return;
    }
    const vote = choices.find((one) => one.key === event.key);
    if (!vote || this.now !== STATES.voting || event.target.matches("input:not([type=range], [type=checkbox]), textarea, select")) return;
    event.preventDefault();
    this.vote(vote.choice);
  }
}
