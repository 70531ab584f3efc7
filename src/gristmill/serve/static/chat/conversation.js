// A conversation: a tree of questions and answers, of which one branch is shown. No DOM, no requests.

import { newId } from "../lib/dom.js";

const FIELDS = ["title", "model", "system", "settings"];
const NODE_FIELDS = ["id", "parent", "role", "content", "reasoning", "citations", "model", "finish", "tokens", "attachments",
  "tool_calls", "tool_call_id"];

export class Conversation {
  constructor(id = newId()) {
    this.id = id;
    this.title = "";
    this.model = "";
    this.system = "";
    this.settings = {};
    this.current = null;
    this.nodes = new Map();
    this.revision = 0; // of the stored document; 0 is not stored
    this.running = null; // {node, stop} while an answer is under way
    this.changed = new Set(); // fields and ids of nodes not yet stored
  }

  set(field, value) {
    if (this[field] === value) return;
    this[field] = value;
    this.changed.add(field);
  }

  // Adds a node below `parent` and shows its branch.
  add(role, parent, content = "", more = {}) {
    const node = { id: newId(), parent, role, content, ...more };
    this.nodes.set(node.id, node);
    this.changed.add(node.id);
    this.set("current", node.id);
    return node;
  }

  // Names the conversation after `question`, where it has no name yet, or has that of a first question in whose place
  // this one stands. A name that a person gave stays.
  entitle(question) {
    const before = (question.parent ?? null) === null ? this.siblings(question).filter((one) => one !== question) : [];
    if (!this.title || before.some((one) => titleOf(one) === this.title)) this.set("title", titleOf(question));
  }

  // Takes back a node without children, as if it had never been.
  drop(node) {
    this.nodes.delete(node.id);
    this.changed.delete(node.id);
    this.set("current", node.parent);
  }

  // The nodes of the branch that ends in `id`, first one first.
  path(id = this.current) {
    const found = [];
    for (let node = this.nodes.get(id); node && !found.includes(node); node = this.nodes.get(node.parent)) found.push(node);
    return found.reverse();
  }

  children(id) {
    return [...this.nodes.values()].filter((node) => (node.parent ?? null) === id);
  }

  siblings(node) {
    return this.children(node.parent ?? null);
  }

  // Shows the branch through `node`, down to its newest end.
  show(node) {
    for (let next = node; next; next = this.children(next.id).at(-1)) node = next;
    this.set("current", node.id);
  }

  // What the model is sent for an answer below `id`.
  messages(id) {
    const said = this.path(id).filter(({ role, content, tool_calls }) => role !== "assistant" || content || tool_calls);
    return [
      ...(this.system.trim() ? [{ role: "system", content: this.system }] : []),
      ...said.map(({ role, content, tool_calls, tool_call_id }) => ({
        role,
        content: tool_calls && !content ? null : content,
        ...(tool_calls && { tool_calls }),
        ...(tool_call_id && { tool_call_id }),
      })),
    ];
  }

  // Ids of all files that were attached along the branch.
  attachments(id) {
    return this.path(id).flatMap((node) => (node.attachments ?? []).map((file) => file.id));
  }

  document() {
    const { title, model, system, settings, current, revision } = this;
    const kept = (node) => Object.fromEntries(NODE_FIELDS.filter((name) => node[name] !== undefined).map((name) => [name, node[name]]));
    return { title, model, system, settings, nodes: [...this.nodes.values()].map(kept), current, revision };
  }

  // Takes over a stored document. What was changed here and not stored yet stays; nothing that either has is lost.
  merge(stored) {
    for (const node of stored.nodes) {
      if (!this.changed.has(node.id)) this.nodes.set(node.id, node);
    }
    for (const field of FIELDS) {
      if (!this.changed.has(field) && stored[field] !== undefined) this[field] = stored[field];
    }
    // The branch on the page stays, unless it went on elsewhere.
    const { current } = this;
    if (current === null || this.path(stored.current).some(({ id }) => id === current)) this.current = stored.current;
    this.revision = stored.revision;
    return this;
  }
}

// A title from the first question, or its first file: its first line, at most 60 characters, cut between words.
function titleOf({ content, attachments }) {
  const line = (content || attachments?.[0]?.name || "").trim().split("\n")[0].replace(/\s+/g, " ");
  if (line.length <= 60) return line;
  const cut = line.slice(0, 59);
  return `${cut.slice(0, cut.lastIndexOf(" ") > 30 ? cut.lastIndexOf(" ") : 59)}…`;
}
