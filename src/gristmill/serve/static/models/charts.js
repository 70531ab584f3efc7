// The figures of one model as small line charts.

import { Chart } from "../lib/chart.js";
import { element } from "../lib/dom.js";

const number = (n) => (n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1).replace(/\.0$/, "") : String(+n.toFixed(2)));
const percent = (n) => `${(100 * n).toFixed(0)} %`;
const seconds = (n) => (n < 1 ? `${number(1000 * n)} ms` : `${number(n)} s`);

const CHARTS = [
  { title: "Tokens per second", lines: [["generation", "written"], ["prompt", "read"]], format: number },
  { title: "Requests", lines: [["running", "running"], ["waiting", "waiting"]], format: number, least: 1 },
  { title: "Cache in use", lines: [["cache", "of its blocks"]], format: percent, most: 1 },
  { title: "Time to first token", lines: [["ttft50", "median"], ["ttft95", "95th percentile"]], format: seconds },
  { title: "Between tokens", lines: [["token50", "median"], ["token95", "95th percentile"]], format: seconds },
  { title: "Prefix hits", lines: [["prefix", "of prompt tokens"]], format: percent, most: 1 },
  { title: "Speculation accepted", lines: [["accepted", "of drafted tokens"]], format: percent, most: 1 },
];

export class Charts {
  constructor() {
    this.charts = CHARTS.map((options) => new Chart(options));
    this.root = element("div", { class: "charts" }, ...this.charts.map((chart) => chart.root));
  }

  show(points) {
    for (const chart of this.charts) chart.show(points);
  }
}
