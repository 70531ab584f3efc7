// Conversations are kept on the server. Tabs tell each other what they stored; when two changed the same one,
// the second to store it takes over what the first had, and nothing is lost.

import { json, request } from "../lib/api.js";
import { notice } from "../lib/dom.js";
import { Conversation } from "./conversation.js";

const RETRY_MS = 3000, WHILE_ANSWERING_MS = 4000;
const at = (id) => `/app/conversations/${encodeURIComponent(id)}`;

export class Keeper {
  // `listed()` is called when the list has changed, `merged(conversation)` when one has been taken over.
  constructor({ listed, merged }) {
    this.listed = listed;
    this.merged = merged;
    this.enabled = false; // until the server says that it keeps conversations
    this.open = new Map(); // id -> Conversation in this tab
    this.saving = new Map(); // id -> promise of the save under way
    this.timers = new Map();
    this.troubled = false;
    this.channel = new BroadcastChannel("gristmill");
    this.channel.addEventListener("message", ({ data }) => this.heard(data));
  }

  async list(query = "") {
    if (!this.enabled) return [...this.open.values()].filter((one) => one.nodes.size && matches(one, query)).reverse();
    return (await json(`/app/conversations${query ? `?q=${encodeURIComponent(query)}` : ""}`)).conversations;
  }

  // The conversation by its id; null when there is none.
  async load(id) {
    if (this.open.has(id)) return this.open.get(id);
    try {
      return this.hold(new Conversation(id).merge(await json(at(id))));
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  }

  hold(conversation) {
    this.open.set(conversation.id, conversation);
    return conversation;
  }

  // Stores what has changed; calls while one is under way are stored after it.
  async save(conversation) {
    const { id } = conversation;
    if (!this.enabled) return this.listed();
    if (!this.open.has(id)) return undefined; // deleted meanwhile
    clearTimeout(this.timers.get(id));
    this.timers.delete(id);
    if (this.saving.has(id)) {
      await this.saving.get(id);
      return conversation.changed.size ? this.save(conversation) : undefined;
    }
    const work = this.put(conversation).finally(() => this.saving.delete(id));
    this.saving.set(id, work);
    return work;
  }

  async put(conversation) {
    const sent = new Set(conversation.changed);
    conversation.changed = new Set(conversation.running ? [conversation.running.node.id] : []);
    try {
      const { revision } = await json(at(conversation.id), { method: "PUT", body: conversation.document() });
      conversation.revision = revision;
      this.troubled = false;
      this.tell({ id: conversation.id, revision });
      this.listed();
    } catch (error) {
      for (const one of sent) conversation.changed.add(one);
      if (error.status === 409) return this.takeOver(conversation, error.body.document);
      this.trouble(conversation, error);
    }
    return undefined;
  }

  takeOver(conversation, stored) {
    if (stored) {
      conversation.merge(stored);
      notice("Another tab had changed this conversation. Both its changes and yours are kept.");
      this.merged(conversation);
    } else conversation.revision = 0; // it was deleted, and goes on here
    return this.put(conversation);
  }

  trouble(conversation, error) {
    if (!this.troubled) notice(`This conversation is not stored yet: ${error.message}`, null, 15);
    this.troubled = true;
    if (error.status === 0 || error.status >= 500) this.later(conversation, RETRY_MS);
  }

  later(conversation, ms = WHILE_ANSWERING_MS) {
    clearTimeout(this.timers.get(conversation.id));
    this.timers.set(conversation.id, setTimeout(() => this.save(conversation), ms));
  }

  // Deletes for all tabs; returns what brings it back.
  async remove(id) {
    const conversation = await this.load(id);
    clearTimeout(this.timers.get(id));
    this.open.delete(id);
    await this.saving.get(id);
    if (this.enabled) await request(at(id), { method: "DELETE" });
    this.tell({ id, deleted: true });
    this.listed();
    return () => {
      conversation.revision = 0;
      conversation.changed.add("title");
      return this.save(this.hold(conversation));
    };
  }

  async heard({ id, revision, deleted }) {
    const conversation = this.open.get(id);
    if (deleted) {
      this.open.delete(id);
      if (conversation) conversation.revision = 0;
    } else if (conversation) await this.catchUp(conversation, revision);
    this.listed();
  }

  // Takes over what another tab stored. A save of this one's own goes first: it may hold what the other has not seen.
  async catchUp(conversation, revision) {
    const { id } = conversation;
    while (revision > conversation.revision && this.open.get(id) === conversation) {
      if (this.saving.has(id)) {
        await this.saving.get(id);
        continue;
      }
      const stored = await json(at(id));
      if (this.saving.has(id)) continue;
      conversation.merge(stored);
      this.merged(conversation);
    }
  }

  tell(message) {
    this.channel.postMessage(message);
  }
}

function matches({ title, nodes }, query) {
  const words = query.toLowerCase();
  return title.toLowerCase().includes(words) || [...nodes.values()].some((node) => node.content.toLowerCase().includes(words));
}
