// Small building blocks of the page. Text always enters as text nodes, never as markup.

export const $ = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

// An element; attributes that are null or false are left out, functions become listeners ("onclick"). Children are
// nodes, texts, or lists of them.
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  // One by one: a long list would not fit on the stack as arguments.
  for (const child of children.flat()) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}

const ICONS = {
  attach: "M14.5 9.2 9 14.7a3.4 3.4 0 0 1-4.8-4.8l6-6a2.3 2.3 0 0 1 3.2 3.2l-5.9 5.9a1.1 1.1 0 0 1-1.6-1.6l5.2-5.2",
  close: "M5 5l10 10M15 5 5 15",
  copy: "M7 7h8.5v9H7zM4.5 12.5v-9H12",
  edit: "M4 16l.8-3.4L13 4.4l2.6 2.6-8.2 8.2zM11.5 6l2.6 2.6",
  left: "M12 5l-5 5 5 5",
  menu: "M3.5 5.5h13M3.5 10h13M3.5 14.5h13",
  more: "M5 10h.01M10 10h.01M15 10h.01",
  redo: "M15.5 10a5.5 5.5 0 1 1-1.7-4M15.8 3.2v3.4h-3.4",
  right: "M8 5l5 5-5 5",
};

export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

// A button with an icon: the label is its tooltip and its name.
export function iconButton(name, label, onclick, attributes = {}) {
  return element("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

let spoken = null;

// Says a text to screen readers.
export function announce(text) {
  spoken ??= $("status");
  spoken.textContent = text;
}

let noticeTimer = 0;

// A line at the bottom that goes away by itself; `action` is {label, run}.
export function notice(text, action = null, seconds = 6) {
  const bar = $("notice");
  clearTimeout(noticeTimer);
  const hide = () => (bar.hidden = true);
  bar.replaceChildren(element("span", {}, text));
  if (action) {
    bar.append(element("button", { type: "button", onclick: () => { hide(); action.run(); } }, action.label));
  }
  bar.append(iconButton("close", "Dismiss", hide));
  bar.hidden = false;
  noticeTimer = setTimeout(hide, 1000 * seconds);
}

export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Outside https and loopback the page has no clipboard: use a selection.
  const area = element("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// `text` is a function, read when pressed.
export function copyButton(text, label = "Copy") {
  const name = element("span", {}, label);
  return element("button", {
    type: "button",
    class: "copy",
    onclick: async () => {
      try {
        await copyText(text());
        name.textContent = "Copied";
      } catch {
        name.textContent = "Not copied";
      }
      setTimeout(() => (name.textContent = label), 1500);
    },
  }, icon("copy"), name);
}

export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// An id that works on plain http too, where crypto.randomUUID is missing.
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
}

// "1.2B", "350k"
export function count(n) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (n >= size) return (n / size).toFixed(n < 10 * size ? 1 : 0) + unit;
  }
  return String(n);
}

export function bytes(n) {
  for (const [size, unit] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (n >= size) return `${(n / size).toFixed(n < 10 * size ? 1 : 0)} ${unit}`;
  }
  return `${n} B`;
}

// The models of /app/info as (value, label) pairs.
export function namesOf(models) {
  return models.map(({ name, adapter_of: base }) => [name, base ? `${name} (adapter of ${base})` : name]);
}

// A whole select from (value, label) pairs.
export function options(pairs, selected) {
  return pairs.map(([value, label]) => element("option", { value, selected: value === selected }, label));
}
