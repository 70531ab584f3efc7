// Questions in a dialog, menus, and what floats beside a thing: the browser's own dialog and popover.

import { element } from "./dom.js";

// Asks for one line; gives it, or null when the person turns away.
export function ask({ title, text = "", label, value = "", type = "text", action = "OK", error = "" }) {
  const input = element("input", { id: "asked", type, autocomplete: "off", spellcheck: "false", required: true });
  input.value = value;
  const dialog = element("dialog", { class: "dialog", "aria-labelledby": "asked-title" },
    element("form", { method: "dialog" },
      element("h2", { id: "asked-title" }, title),
      text && element("p", {}, text),
      element("label", { for: "asked" }, label),
      input,
      error && element("p", { class: "failure", role: "alert" }, error),
      element("div", { class: "actions" },
        element("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel"),
        element("button", { type: "submit", value: "yes", class: "strong" }, action))));
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? input.value.trim() : null);
    });
    dialog.showModal();
    input.select();
  });
}

// Shows `content` in a popover beside `anchor`; Escape and a click elsewhere close it, focus returns.
export function float(anchor, content, attributes = {}) {
  const box = element("div", { popover: "auto", ...attributes, class: `float ${attributes.class ?? ""}` }, content);
  document.body.append(box);
  box.addEventListener("toggle", (event) => {
    if (event.newState !== "closed") return;
    if (box.contains(document.activeElement) || document.activeElement === document.body) anchor.focus();
    box.remove();
    anchor.removeAttribute("aria-expanded");
  });
  box.showPopover();
  anchor.setAttribute("aria-expanded", "true");
  const place = anchor.getBoundingClientRect(), size = box.getBoundingClientRect(), gap = 6;
  const below = place.bottom + gap + size.height <= innerHeight || place.top < size.height + gap;
  const top = below ? Math.min(place.bottom + gap, innerHeight - size.height - gap) : place.top - gap - size.height;
  const left = Math.min(place.left, innerWidth - size.width - gap);
  box.style.setProperty("top", `${Math.max(gap, top)}px`);
  box.style.setProperty("left", `${Math.max(gap, left)}px`);
  return box;
}

// A menu of {label, run, kind?}; arrow keys move, Enter chooses.
export function menu(anchor, label, items) {
  const list = element("div", { role: "menu", "aria-label": label });
  const box = float(anchor, list, { class: "menu" });
  for (const { label: name, run, kind } of items) {
    list.append(element("button", {
      type: "button", role: "menuitem", class: kind, tabindex: "-1",
      onclick: () => {
        box.hidePopover();
        run();
      },
    }, name));
  }
  const buttons = [...list.children];
  list.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1 + buttons.length, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    buttons[to % buttons.length].focus();
  });
  buttons[0].focus();
  const place = anchor.getBoundingClientRect(), size = box.getBoundingClientRect();
  if (place.bottom + size.height + 6 > innerHeight) box.style.setProperty("top", `${Math.max(6, place.top - size.height - 6)}px`);
  if (place.left + size.width + 6 > innerWidth) box.style.setProperty("left", `${Math.max(6, place.right - size.width)}px`);
}
