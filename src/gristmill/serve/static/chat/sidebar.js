// The list of conversations: search, rename, export, delete.

import { request } from "../lib/api.js";
import { ask, menu } from "../lib/dialog.js";
import { $, download, element, iconButton, notice } from "../lib/dom.js";

const EXPORTS = [["markdown", "Markdown", "md"], ["json", "JSON", "json"], ["messages", "messages (JSONL)", "jsonl"]];

export class Sidebar {
  // `shown()` gives the id of the conversation on the page, `renamed` and `removed` are told what was done.
  constructor(keeper, { shown, removed, renamed }) {
    Object.assign(this, { keeper, shown, removed, renamed });
    this.asked = 0;
    let timer = 0;
    $("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.refresh(), 150);
    });
  }

  async refresh() {
    const query = $("search").value.trim(), turn = ++this.asked;
    try {
      const found = await this.keeper.list(query);
      if (turn === this.asked) this.draw(found, query);
    } catch (error) {
      if (turn === this.asked) $("conversations-note").textContent = `The list is not to be had: ${error.message}`;
    }
  }

  draw(found, query) {
    const focused = document.activeElement?.closest?.("#conversations li")?.dataset.id;
    const button = document.activeElement?.tagName === "BUTTON";
    $("conversations").replaceChildren(...found.map((one) => this.row(one)));
    this.mark();
    if (focused) $("conversations").querySelector(`li[data-id="${CSS.escape(focused)}"] ${button ? "button" : "a"}`)?.focus();
    $("conversations-note").textContent = found.length
      ? this.keeper.enabled ? "" : "This server keeps no conversations: they end with this tab."
      : query ? "No conversation has these words." : "Your conversations will be listed here.";
  }

  row({ id, title }) {
    const name = title || "Without a title";
    return element("li", { "data-id": id },
      element("a", { href: `#/chat/${id}`, title: name }, name),
      iconButton("more", `More for ${name}`, (event) => this.menu(event.currentTarget, id, name), { "aria-haspopup": "menu" }));
  }

  mark() {
    for (const row of $("conversations").children) {
      const link = row.querySelector("a");
      if (row.dataset.id === this.shown()) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  menu(anchor, id, title) {
    menu(anchor, `More for ${title}`, [
      { label: "Rename", run: () => this.rename(id, title) },
      ...(this.keeper.enabled ? EXPORTS.map(([format, label, ending]) => ({
        label: `Export as ${label}`, run: () => this.export(id, title, format, ending),
      })) : []),
      { label: "Delete", kind: "danger", run: () => this.remove(id, title) },
    ]);
  }

  async rename(id, title) {
    const given = await ask({ title: "Rename the conversation", label: "Title", value: title, action: "Rename" });
    if (!given) return;
    await said(async () => {
      const conversation = await this.keeper.load(id);
      if (!conversation) throw new Error("It was deleted in another tab.");
      conversation.set("title", given);
      await this.keeper.save(conversation);
      this.renamed(conversation);
    });
  }

  async export(id, title, format, ending) {
    await said(async () => {
      const response = await request(`/app/conversations/${encodeURIComponent(id)}/export?format=${format}`);
      download(`${title.replace(/[^\p{L}\p{N} _.-]+/gu, " ").trim() || "conversation"}.${ending}`, await response.blob());
    });
  }

  async remove(id, title) {
    await said(async () => {
      const back = await this.keeper.remove(id);
      this.removed(id);
      notice(`“${title}” is deleted.`, { label: "Undo", run: () => said(back) }, 10);
    });
  }
}

async function said(work) {
  try {
    await work();
  } catch (error) {
    notice(error.message);
  }
}
