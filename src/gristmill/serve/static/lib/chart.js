// A small line chart in SVG: the newest value in words, the line of the last minutes, a value under the pointer.

import { element, svg } from "./dom.js";

const WIDTH = 240, HEIGHT = 64, SLOTS = 30; // readings that fill the width; more are drawn closer

export class Chart {
  // `lines` are [field, name]; `most` fixes the top of the scale, `least` is the smallest top; `format` says a value.
  constructor({ title, lines, format, most = null, least = 0 }) {
    Object.assign(this, { title, lines, format, most, least });
    this.points = [];
    this.values = lines.map(() => element("b", {}, "–"));
    this.paths = lines.map((_, i) => svg("path", { class: `line line-${i}` }));
    this.area = svg("path", { class: "area" });
    this.cursor = svg("path", { class: "cursor" });
    this.top = element("span", { class: "chart-top", "aria-hidden": "true" });
    this.plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: nothing yet` },
      svg("path", { class: "axis", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }), this.area, ...this.paths, this.cursor);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.point(null));
    this.root = element("figure", { class: "chart" },
      element("figcaption", {}, title),
      element("p", { class: "chart-values" }, ...lines.map(([, name], i) => element("span", { class: `key key-${i}` }, this.values[i], ` ${name}`))),
      element("div", { class: "plot" }, this.top, this.plot));
    this.at = null;
  }

  get slots() {
    return Math.max(SLOTS, this.points.length);
  }

  show(points) {
    this.points = points;
    const { slots } = this;
    const all = this.lines.flatMap(([field]) => points.map((one) => one[field])).filter((value) => value !== null);
    const top = this.most ?? Math.max(this.least, nice(Math.max(0, ...all)));
    const x = (i) => ((i + slots - points.length) / (slots - 1)) * WIDTH;
    const y = (value) => HEIGHT - 1 - (top ? value / top : 0) * (HEIGHT - 4);
    this.lines.forEach(([field], i) => {
      const drawn = points.map((one, at) => (one[field] === null ? null : `${x(at).toFixed(1)} ${y(one[field]).toFixed(1)}`));
      this.paths[i].setAttribute("d", path(drawn));
      if (i === 0) {
        const first = drawn.findIndex((one) => one !== null);
        const line = drawn.filter((one) => one !== null).join("L");
        this.area.setAttribute("d", first < 0 ? "" : `M${x(first).toFixed(1)} ${HEIGHT}L${line}L${WIDTH} ${HEIGHT}Z`);
      }
    });
    this.top.textContent = all.length ? this.format(top) : "";
    this.say(points.length - 1);
    this.plot.setAttribute("aria-label", `${this.title}: ${this.lines.map(([, name], i) => `${this.values[i].textContent} ${name}`).join(", ")}`);
    if (this.at !== null) this.say(this.at);
  }

  say(index) {
    this.lines.forEach(([field], i) => {
      const value = this.points[index]?.[field] ?? null;
      this.values[i].textContent = value === null ? "–" : this.format(value);
    });
  }

  point(event) {
    const place = event && this.plot.getBoundingClientRect(), { slots } = this;
    const at = event && Math.round(((event.clientX - place.left) / place.width) * (slots - 1)) - slots + this.points.length;
    this.at = event && at >= 0 && at < this.points.length ? at : null;
    const x = this.at === null ? null : ((this.at + slots - this.points.length) / (slots - 1)) * WIDTH;
    this.cursor.setAttribute("d", x === null ? "" : `M${x.toFixed(1)} 0V${HEIGHT}`);
    this.say(this.at ?? this.points.length - 1);
  }
}

function path(drawn) {
  let d = "", pen = "M";
  for (const one of drawn) {
    if (one === null) pen = "M";
    else {
      d += pen + one;
      pen = "L";
    }
  }
  return d;
}

// The next of 1, 2, 5, 10, … times a power of ten: scales that do not twitch with every value.
function nice(value) {
  if (value <= 0) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}
