// Files put to a question: by the button, by dropping them on the page, or by pasting.

import { request } from "../lib/api.js";
import { $, bytes, element, iconButton, notice } from "../lib/dom.js";

const MAX_BYTES = 16 * 2 ** 20; // the server's bound

export class Attachments {
  constructor() {
    this.files = []; // {name, size, state: "sending" | "ready" | "failed", id?, passages?, error?}
    $("attach").addEventListener("click", () => $("file-input").click());
    $("file-input").addEventListener("change", () => {
      this.add($("file-input").files);
      $("file-input").value = "";
    });
    const page = $("chat");
    const carries = (event) => this.enabled && event.dataTransfer?.types.includes("Files");
    page.addEventListener("dragover", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      $("composer").classList.add("dropping");
    });
    page.addEventListener("dragleave", (event) => {
      if (!page.contains(event.relatedTarget)) $("composer").classList.remove("dropping");
    });
    page.addEventListener("drop", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      $("composer").classList.remove("dropping");
      this.add(event.dataTransfer.files);
    });
    $("question").addEventListener("paste", (event) => {
      if (!this.enabled || !event.clipboardData?.files.length) return;
      event.preventDefault();
      this.add(event.clipboardData.files);
    });
  }

  get enabled() {
    return !$("attach").hidden;
  }

  add(files) {
    for (const file of files) this.send({ name: file.name || "pasted", size: file.size, state: "sending" }, file);
  }

  async send(entry, file) {
    this.files.push(entry);
    this.draw();
    entry.sent = (async () => {
      try {
        if (file.size > MAX_BYTES) throw new Error(`is larger than ${bytes(MAX_BYTES)}`);
        const response = await request(`/app/attachments?name=${encodeURIComponent(entry.name)}`, {
          method: "POST", body: file, headers: { "content-type": "application/octet-stream" },
        });
        const { id, passages } = await response.json();
        Object.assign(entry, { id, passages, state: "ready" });
      } catch (error) {
        Object.assign(entry, { state: "failed", error: error.message });
      }
      this.draw();
    })();
  }

  remove(entry) {
    this.files = this.files.filter((one) => one !== entry);
    this.draw();
    $("question").focus();
    if (entry.id) request(`/app/attachments/${entry.id}`, { method: "DELETE" }).catch((error) => notice(error.message));
  }

  draw() {
    $("files").hidden = this.files.length === 0;
    $("files").replaceChildren(...this.files.map((entry) => {
      const told = {
        sending: "reading…",
        ready: entry.passages === 1 ? "1 passage" : `${entry.passages} passages`,
        failed: entry.error,
      }[entry.state];
      return element("li", { class: `file ${entry.state}` },
        element("span", { class: "file-name" }, entry.name), element("span", { class: "file-note" }, told),
        iconButton("close", `Remove ${entry.name}`, () => this.remove(entry)));
    }));
  }

  // The files that were read, taken out of the composer; waits for those on their way. Failed ones stay.
  async take() {
    await Promise.all(this.files.map((entry) => entry.sent));
    const ready = this.files.filter((entry) => entry.state === "ready");
    this.files = this.files.filter((entry) => entry.state !== "ready");
    this.draw();
    return ready.map(({ id, name }) => ({ id, name }));
  }
}
