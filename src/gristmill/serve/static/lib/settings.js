// The sampling controls, for chat and for each side of compare. A control that says nothing new is not sent.

import { element, newId } from "./dom.js";

const CONTROLS = [
  { name: "temperature", label: "Temperature", type: "range", min: 0, max: 2, step: 0.05, off: null, start: 0,
    hint: "0 gives the likeliest answer, the same each time." },
  { name: "max_tokens", label: "Longest answer, in tokens", type: "number", min: 1, max: 10_000_000, off: "",
    hint: "Empty: as long as the model's context leaves room." },
  { name: "top_p", label: "Top-p", type: "range", min: 0.01, max: 1, step: 0.01, off: 1,
    hint: "Draws from the likeliest tokens that make up this share." },
  { name: "top_k", label: "Top-k", type: "number", min: 1, max: 1_000_000, off: "", hint: "Draws from so many tokens. Empty: from all." },
  { name: "min_p", label: "Min-p", type: "range", min: 0, max: 1, step: 0.01, off: 0,
    hint: "Leaves out tokens below this share of the likeliest one." },
  { name: "presence_penalty", label: "Presence penalty", type: "range", min: -2, max: 2, step: 0.1, off: 0 },
  { name: "frequency_penalty", label: "Frequency penalty", type: "range", min: -2, max: 2, step: 0.1, off: 0 },
  { name: "repetition_penalty", label: "Repetition penalty", type: "range", min: 0.5, max: 2, step: 0.05, off: 1 },
  { name: "seed", label: "Seed", type: "number", min: 0, max: 2 ** 53 - 1, off: "", hint: "The same seed gives the same answer. Empty: chosen anew." },
  { name: "stop", label: "Stop at", type: "textarea", off: "", hint: "Up to four texts, one a line." },
];

export function startSettings(context) {
  return { temperature: 0, max_tokens: Math.min(1024, context >> 1) };
}

// The controls for `values`; `changed(values)` gets a new object.
export function settingsForm(values, changed) {
  const prefix = newId().slice(0, 6);
  let now = { ...values };
  return element("div", { class: "controls" }, ...CONTROLS.map((control) => {
    const { name, label, type, hint, off, start, ...limits } = control;
    const id = `${prefix}-${name}`, field = type === "textarea";
    const value = now[name] ?? off ?? start;
    const output = type === "range" && element("output", { for: id }, String(value));
    const input = element(field ? "textarea" : "input", {
      id, ...(field ? { rows: 2 } : { type, ...limits }), inputmode: type === "number" ? "numeric" : null,
      "aria-describedby": hint ? `${id}-hint` : null,
      oninput: () => {
        if (output) output.textContent = input.value;
        const given = field ? input.value : input.value === "" ? "" : Number(input.value);
        now = { ...now, [name]: given };
        if (given === off) delete now[name];
        changed(now);
      },
    });
    input.value = value;
    return element("div", { class: "control" },
      element("label", { for: id }, label, output && " ", output), input, hint && element("p", { class: "hint", id: `${id}-hint` }, hint));
  }));
}

// The fields of a request, from the values of the form.
export function requestFields({ stop, tools, ...values }) {
  const stops = (stop ?? "").split("\n").filter(Boolean);
  return { temperature: 0, ...values, ...(stops.length && { stop: stops }), ...(tools?.length && { tools }) };
}

// How two sets of values differ, in words: "temperature 1, top_p 0.9"; for those set in `values`.
export function differences(values, other) {
  return CONTROLS.map(({ name, off, start }) => [name, values[name] ?? off ?? start, other[name] ?? off ?? start])
    .filter(([, mine, theirs]) => mine !== theirs)
    .map(([name, mine]) => `${name.replaceAll("_", " ")} ${mine === "" ? "not set" : mine}`)
    .join(", ");
}
