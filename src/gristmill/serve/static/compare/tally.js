// The score of each pair of models, and the votes as a file to train on.

import { request } from "../lib/api.js";
import { download, element, notice } from "../lib/dom.js";
import { score } from "./votes.js";

export class Tally {
  constructor() {
    this.body = element("tbody");
    const head = ["Pair", "Votes", "Ties", "Both bad"].map((name) => element("th", { scope: "col" }, name));
    this.table = element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Votes so far" },
      element("table", {}, element("thead", {}, element("tr", {}, head)), this.body));
    this.root = element("section", { class: "tally", hidden: true },
      element("div", { class: "tally-head" }, element("h2", {}, "Votes so far"),
        element("button", { type: "button", class: "quiet", onclick: () => this.export() }, "Export preferences (JSONL)")), this.table);
  }

  async refresh({ store }) {
    if (!store) return;
    try {
      const pairs = await score();
      this.root.hidden = pairs.length === 0;
      this.body.replaceChildren(...pairs.map(row));
    } catch (error) {
      notice(`The score is not to be had: ${error.message}`);
    }
  }

  async export() {
    try {
      const response = await request("/app/votes/export");
      const left = Number(response.headers.get("x-gristmill-left-out"));
      download("preferences.jsonl", await response.blob());
      if (left) notice(`${left} ${left === 1 ? "vote is" : "votes are"} not in the file: ties and both bad say nothing of which is better.`);
    } catch (error) {
      notice(error.message);
    }
  }
}

function row({ a, b, a_wins: mine, b_wins: theirs, ties, bad }) {
  const split = element("span", { class: "split", "aria-hidden": "true" }, element("span"), element("span"));
  split.firstChild.style.setProperty("--n", mine);
  split.lastChild.style.setProperty("--n", theirs);
  const versus = element("div", { class: "versus" },
    element("span", {}, a, " ", element("b", {}, String(mine))), element("span", {}, element("b", {}, String(theirs)), " ", b));
  return element("tr", {}, element("td", {}, versus, split),
    ...[mine + theirs + ties + bad, ties, bad].map((n) => element("td", { class: "right" }, String(n))));
}
