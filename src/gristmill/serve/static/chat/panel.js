// The settings of a conversation: model, system prompt, sampling, tools.

import { $, element, iconButton, namesOf, options } from "../lib/dom.js";
import { settingsForm } from "../lib/settings.js";

export class Panel {
  // `settings(values)` and `system(text)` are told what was changed.
  constructor({ settings, system }) {
    Object.assign(this, { settings, system });
    this.of = null;
    $("open-settings").addEventListener("click", () => ($("settings").hidden ? this.open() : this.close()));
  }

  open() {
    $("settings").hidden = false;
    $("open-settings").setAttribute("aria-expanded", "true");
    $("settings").querySelector("textarea")?.focus();
  }

  // Whether it was open.
  close() {
    if ($("settings").hidden) return false;
    const inside = $("settings").contains(document.activeElement);
    $("settings").hidden = true;
    $("open-settings").setAttribute("aria-expanded", "false");
    if (inside) $("open-settings").focus();
    return true;
  }

  show(conversation, info) {
    const models = info?.models ?? [];
    $("pick-model").hidden = models.length < 2;
    $("pick-model").replaceChildren(...options(namesOf(models), conversation.model || models[0]?.name));
    $("attach").hidden = !info;
    if (this.of === conversation && $("settings").contains(document.activeElement)) return; // it is being typed into
    this.of = conversation;
    this.draw(conversation, models.some((model) => model.tools));
  }

  draw(conversation, takesTools) {
    const { tools, look_up: _, ...sampling } = conversation.settings;
    let values = sampling, called = tools ?? [];
    const tell = () => this.settings({ ...values, ...(called.length && { tools: called }) });
    const system = element("textarea", { id: "system-prompt", rows: 4, placeholder: "None", oninput: () => this.system(system.value) });
    system.value = conversation.system;
    $("settings").replaceChildren(
      element("div", { class: "panel-head" }, element("h2", {}, "Settings"), iconButton("close", "Close the settings", () => this.close())),
      element("div", { class: "control" }, element("label", { for: "system-prompt" }, "System prompt"), system,
        element("p", { class: "hint" }, "Said to the model before the conversation.")),
      settingsForm(values, (changed) => {
        values = changed;
        tell();
      }),
      takesTools && this.tools(called, (given) => {
        called = given;
        tell();
      }));
  }

  tools(called, changed) {
    const problem = element("p", { class: "failure", role: "alert", hidden: true });
    const area = element("textarea", {
      id: "tools", rows: 4, spellcheck: "false", class: "mono", placeholder: '[{"type": "function", "function": {"name": …}}]',
      onchange: () => {
        const [tools, why] = parsed(area.value);
        problem.hidden = !why;
        problem.textContent = why;
        if (!why) changed(tools);
      },
    });
    area.value = called.length ? JSON.stringify(called, null, 2) : "";
    return element("div", { class: "control" }, element("label", { for: "tools" }, "Tools"), area, problem,
      element("p", { class: "hint" }, "A JSON list in OpenAI's form. Calls are shown, and you type what they answer."));
  }
}

function parsed(text) {
  if (!text.trim()) return [[], ""];
  try {
    const tools = JSON.parse(text);
    if (Array.isArray(tools)) return [tools, ""];
    return [[], "The tools must be a JSON list: [ … ]."];
  } catch (error) {
    return [[], `The tools are not JSON: ${error.message}`];
  }
}
