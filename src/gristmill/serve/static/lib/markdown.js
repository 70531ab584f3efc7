// Markdown as DOM nodes, growing with a stream: blocks that are done are left alone.

import { blocks } from "./blocks.js";
import { copyButton, element } from "./dom.js";
import { highlighted } from "./highlight.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 10; // of lists and quotes inside each other; deeper is shown as text

// Fills `root`; update(text) shows a text that has grown, or another one.
export class Markdown {
  constructor(root) {
    this.root = root;
    this.text = "";
    this.done = []; // {start, source, node} of each block
  }

  update(text) {
    if (!text.startsWith(this.text)) this.done = [];
    this.text = text;
    // More text can change the last block, or join it to the one before (a list goes on after a gap).
    const keep = Math.max(0, this.done.length - 2);
    const start = this.done[keep]?.start ?? 0;
    const old = this.done.splice(keep);
    for (const { block, source, offset } of placed(text.slice(start))) {
      const before = old.shift();
      const node = before?.source === source ? before.node : render(block, 0);
      this.done.push({ start: start + offset, source, node });
    }
    const nodes = this.done.map((one) => one.node);
    nodes.forEach((node, i) => {
      if (this.root.childNodes[i] !== node) this.root.insertBefore(node, this.root.childNodes[i] ?? null);
    });
    while (this.root.childNodes.length > nodes.length) this.root.lastChild.remove();
  }
}

function placed(text) {
  const lines = text.split("\n");
  const starts = [0];
  for (const line of lines) starts.push(starts.at(-1) + line.length + 1);
  return blocks(lines).map((block) => ({
    block,
    offset: starts[block.from],
    source: text.slice(starts[block.from], starts[block.to]),
  }));
}

function render(block, depth) {
  switch (block.kind) {
    case "heading": return element(`h${Math.min(6, block.level + 2)}`, { class: `level-${block.level}` }, inline(block.text));
    case "rule": return element("hr");
    case "code": return code(block.text, block.language);
    case "quote": return element("blockquote", {}, nested(block.lines, depth));
    case "list": return list(block, depth);
    case "table": return table(block);
    default: return element("p", {}, inline(block.text));
  }
}

function nested(lines, depth) {
  if (depth >= MAX_DEPTH) return [element("p", {}, lines.join("\n"))];
  return blocks(lines).map((block) => render(block, depth + 1));
}

export function code(text, language) {
  return element("div", { class: "code" },
    element("div", { class: "code-head" }, element("span", {}, language || "text"), copyButton(() => text)),
    element("pre", { tabindex: "0" }, element("code", {}, highlighted(text, language))));
}

function list({ ordered, start, loose, items }, depth) {
  const spread = loose || items.some(hasGap);
  const rows = items.map((lines) => {
    const task = /^\[([ xX])\] /.exec(lines[0]);
    if (task) lines = [lines[0].slice(4), ...lines.slice(1)];
    const children = nested(lines, depth);
    const content = spread ? children : children.flatMap((node) => (node.tagName === "P" ? [...node.childNodes] : [node]));
    if (!task) return element("li", {}, content);
    const done = task[1] !== " ";
    return element("li", { class: "task" }, element("span", { role: "img", "aria-label": done ? "done" : "to do" }, done ? "☑" : "☐"), " ", content);
  });
  return element(ordered ? "ol" : "ul", { start: ordered && start !== 1 ? start : null }, ...rows);
}

// Whether an empty line stands between two blocks of an item: its list is then spread out.
function hasGap(lines) {
  return blocks(lines).slice(1).some((block) => !lines[block.from - 1].trim());
}

function table({ align, head, rows }) {
  const row = (tag, values) => element("tr", {}, ...align.map((side, i) =>
    element(tag, { class: side === "left" ? null : side, scope: tag === "th" ? "col" : null }, inline(values[i] ?? ""))));
  const body = element("tbody", {}, rows.map((values) => row("td", values)));
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    element("table", {}, element("thead", {}, row("th", head)), body));
}
