// Who is compared: two models, or one with two kinds of settings; blind or not; who votes.

import { element, namesOf, options } from "../lib/dom.js";
import { remember, remembered } from "../lib/remembered.js";
import { differences, settingsForm, startSettings } from "../lib/settings.js";

export const choices = [
  { choice: "first", key: "1", label: "First is better", told: "The first was better." },
  { choice: "second", key: "2", label: "Second is better", told: "The second was better." },
  { choice: "tie", key: "3", label: "Tie", told: "A tie." },
  { choice: "bad", key: "4", label: "Both bad", told: "Both were bad." },
];

export class Setup {
  // `changed()` is called when a contestant is another than before.
  constructor(changed) {
    this.changed = changed;
    this.sides = ["A", "B"].map((letter) => this.side(letter));
    this.blind = this.switch("Blind", "Names and order are hidden until you vote");
    this.lookUp = this.switch("Look it up", "");
    this.who = element("input", {
      id: "annotator", maxlength: 200, placeholder: "Your name (optional)", "aria-label": "Your name, kept with your votes",
      autocomplete: "off",
    });
    this.who.value = remembered().annotator ?? "";
    this.who.addEventListener("change", () => remember({ annotator: this.annotator }));
    this.root = element("section", { class: "setup", "aria-label": "Contestants" },
      element("div", { class: "contestants" }, ...this.sides.map((side) => side.root)),
      element("div", { class: "switches" }, this.blind.root, this.lookUp.root, this.who));
    this.lookUp.root.hidden = true;
  }

  get annotator() {
    return this.who.value.trim();
  }

  switch(label, title) {
    const input = element("input", { type: "checkbox", role: "switch" });
    return { input, root: element("label", { class: "switch", title }, input, element("span", { class: "track", "aria-hidden": "true" }), label) };
  }

  side(letter) {
    const select = element("select", { id: `model-${letter}`, onchange: () => this.changed() });
    const controls = element("div", { class: "settings-of" });
    const details = element("details", {}, element("summary", {}, `Settings of ${letter}`), controls);
    const root = element("div", { class: "contestant" },
      element("label", { for: `model-${letter}` }, `Model ${letter}`), select, details);
    return { select, controls, root, settings: {} };
  }

  fill({ models }) {
    this.models = models;
    this.sides.forEach((side, i) => {
      const model = models[Math.min(i, models.length - 1)];
      side.select.replaceChildren(...options(namesOf(models), model.name));
      // One model against itself: the second starts out bolder, so that there is something to compare.
      side.settings = { ...startSettings(model.context), ...(i && models.length === 1 && { temperature: 0.8 }) };
      side.controls.replaceChildren(settingsForm(side.settings, (values) => {
        side.settings = values;
        this.changed();
      }));
    });
    this.lookUp.root.hidden = !models.some((model) => model.retrieval);
  }

  lock(locked) {
    for (const control of this.root.querySelectorAll("input, select, textarea")) control.disabled = locked;
  }

  // {contestants: two of {model, settings, label, retrieval}, blind, lookUp}
  read() {
    const [a, b] = this.sides;
    const same = a.select.value === b.select.value;
    const contestants = [[a, b], [b, a]].map(([side, other]) => {
      const model = this.models.find(({ name }) => name === side.select.value);
      const how = same ? differences(side.settings, other.settings) : "";
      return { model: model.name, settings: side.settings, retrieval: model.retrieval, label: how ? `${model.name} (${how})` : model.name };
    });
    return { contestants, blind: this.blind.input.checked, lookUp: this.lookUp.input.checked && !this.lookUp.root.hidden };
  }
}
