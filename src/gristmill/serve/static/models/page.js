// The models page: what is loaded, how it is doing now, and how to call it from elsewhere.

import { json, server } from "../lib/api.js";
import { element } from "../lib/dom.js";
import { modelCard, waysToCall } from "./card.js";
import { Charts } from "./charts.js";
import { History } from "./history.js";

const EVERY_MS = 2000;

export function mount(section) {
  const page = new Models(section);
  return { show: () => page.start(), hide: () => page.stop() };
}

class Models {
  constructor(section) {
    this.state = element("p", { class: "hint" }, "Reading what is loaded…");
    this.list = element("div", { class: "loaded" });
    section.append(element("div", { class: "inner" },
      element("h1", { id: "models-title", class: "big" }, "Models"), this.state, this.list));
    this.history = new History();
    this.charts = new Map(); // name -> Charts
    this.timer = 0;
    this.running = false;
  }

  async start() {
    if (this.running) return;
    this.running = true;
    await server.ready;
    await this.look();
    this.tick();
  }

  stop() {
    this.running = false;
    clearTimeout(this.timer);
  }

  async look() {
    try {
      const { models } = await json("/app/models");
      this.charts.clear();
      this.list.replaceChildren(...models.map((model) => {
        const charts = new Charts();
        this.charts.set(model.name, charts);
        return element("section", { class: "loaded-model", "aria-label": model.name },
          modelCard(model), element("h3", {}, "Now"), charts.root, element("h3", {}, "Call it"), waysToCall(model.name, server.info.keys_required));
      }));
      this.state.textContent = `Gristmill ${server.info.version}`;
    } catch (error) {
      this.state.textContent = `What is loaded is not to be had: ${error.message}`;
    }
  }

  async tick() {
    if (!this.running) return;
    try {
      if (!document.hidden) {
        if (!this.charts.size) await this.look();
        const stats = await json("/app/stats");
        this.history.add(stats);
        for (const [name, charts] of this.charts) charts.show(this.history.of(name));
        const memory = stats.memory_bytes ? `, ${(stats.memory_bytes / 2 ** 30).toFixed(2)} GiB of memory in use` : "";
        this.state.textContent = `Gristmill ${server.info.version}${memory}`;
      }
    } catch (error) {
      this.state.textContent = error.message;
    }
    this.timer = setTimeout(() => this.tick(), EVERY_MS);
  }
}
