// The chat page: puts conversation, view, sidebar, composer and settings together.

import { server } from "../lib/api.js";
import { $, announce, icon, notice } from "../lib/dom.js";
import { remember, remembered } from "../lib/remembered.js";
import { startSettings } from "../lib/settings.js";
import { modelOf, respond } from "./asking.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { Keeper } from "./keeping.js";
import { Panel } from "./panel.js";
import { Sidebar } from "./sidebar.js";
import { textOf } from "./tokens.js";
import { View } from "./view.js";

let now = null; // the conversation on the page
let frame = 0;
let opened = 0; // how many were opened: tells the latest
let opening = null; // settles when the latest is on the page

const keeper = new Keeper({
  listed: () => sidebar.refresh(),
  merged: (conversation) => conversation === now && !conversation.running && draw(),
});
const view = new View({
  edit: (node, text) => {
    if (now.running) return;
    now.entitle(now.add("user", node.parent, text, { ...(node.attachments && { attachments: node.attachments }) }));
    reply();
  },
  again: (node) => {
    if (now.running) return;
    now.set("current", node?.role === "assistant" ? node.parent : node?.id ?? now.current);
    reply();
  },
  choose: (node) => {
    if (now.running) return;
    now.show(node);
    now.failed = null;
    draw();
    keeper.save(now);
  },
  goOn: (node) => reply(node),
  branchAt: (node, tokens) => {
    if (!now.running) reply(now.add("assistant", node.parent, textOf(tokens), { tokens }));
  },
  results: (node, texts) => {
    if (now.running) return;
    node.tool_calls.filter(Boolean).forEach(({ id }, i) => now.add("tool", now.current, texts[i], { tool_call_id: id }));
    reply();
  },
});
const sidebar = new Sidebar(keeper, {
  shown: () => now.id,
  removed: (id) => id === now.id && newChat(),
  renamed: (conversation) => conversation === now && draw(),
});
const composer = new Composer({
  ask,
  stop: () => now.running?.stop(),
  running: () => Boolean(now.running),
  lookUp: (on) => settle({ look_up: on }),
});
const panel = new Panel({
  settings: (values) => settle(values),
  system: (text) => {
    now.set("system", text);
    remember({ system: text });
    changedSettings();
  },
});

function settle(values) {
  now.set("settings", { ...(values.look_up === undefined ? { look_up: now.settings.look_up } : now.settings), ...values });
  remember({ settings: now.settings });
  changedSettings();
}

function changedSettings() {
  if (now.nodes.size) keeper.later(now, 800);
}

function fresh() {
  const conversation = new Conversation();
  const { settings, system = "", model = "" } = remembered();
  Object.assign(conversation, { settings: settings ?? startSettings(server.info?.models[0].context ?? 2048), system, model });
  return conversation;
}

function newChat() {
  if (location.hash === "#/chat" || !location.hash) opening = open("");
  else location.hash = "#/chat";
}

// Shows the conversation `id`, or a new one.
async function open(id) {
  closeSidebar();
  const turn = ++opened;
  composer.show(id); // at once: what is typed while the conversation loads stays
  let conversation = null;
  if (id) {
    await server.ready;
    try {
      conversation = await keeper.load(id);
    } catch (error) {
      notice(error.message, { label: "Try again", run: () => open(id) }, 20);
      return;
    }
    if (!conversation) {
      notice("There is no such conversation here any more.");
      history.replaceState(null, "", "#/chat");
      composer.id = "";
    } else if (!server.info.models.some(({ name }) => name === conversation.model)) {
      notice(`${conversation.model || "Its model"} is not loaded; ${modelOf(conversation).name} will answer.`);
    }
  }
  if (turn !== opened) return; // another one was opened meanwhile
  now = conversation ?? fresh();
  draw();
  sidebar.mark();
  window.scrollTo({ top: conversation ? document.documentElement.scrollHeight : 0 });
}

function draw() {
  const { info } = server;
  view.withTokens = Boolean(remembered().tokens);
  view.manyModels = info?.models.length > 1;
  view.render(now);
  panel.show(now, info);
  composer.update(info && modelOf(now), now);
}

const atBottom = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
const scrollDown = () => window.scrollTo({ top: document.documentElement.scrollHeight });

async function ask(text, files) {
  await opening;
  const conversation = now, last = now.path().at(-1);
  // A question that was refused or stopped without a word is not sent along: this one stands beside it.
  const parent = last?.role === "user" ? last.parent : last?.id ?? null;
  conversation.entitle(conversation.add("user", parent, text, { ...(files.length && { attachments: files }) }));
  if (!keeper.open.has(conversation.id)) {
    keeper.hold(conversation);
    if (now === conversation) {
      history.replaceState(null, "", `#/chat/${conversation.id}`);
      composer.id = conversation.id;
    }
  }
  await reply();
}

// Lets the model answer in the conversation on the page, which goes on when another one is opened meanwhile.
function reply(node = null) {
  const conversation = now, isShown = () => conversation === now;
  return respond(conversation, {
    node,
    withTokens: view.withTokens,
    tell: {
      started: () => {
        draw();
        scrollDown();
        announce("The model is answering.");
        server.ready.then(() => {
          if (!conversation.model) conversation.set("model", modelOf(conversation).name);
          keeper.save(conversation);
        });
      },
      changed: () => {
        if (!keeper.timers.has(conversation.id)) keeper.later(conversation);
        if (isShown()) frame ||= requestAnimationFrame(paint);
      },
      ended: (answered) => {
        keeper.save(conversation);
        if (!isShown()) return;
        const follow = atBottom();
        draw();
        announce(conversation.failed ? "" : answered.finish === "stopped" ? "Stopped." : `Answer: ${answered.content}`);
        if (follow) scrollDown();
        composer.focus();
      },
    },
  });
}

function paint() {
  frame = 0;
  if (!now.running || !view.live) return;
  const follow = atBottom();
  view.live.update(true);
  if (follow) scrollDown();
}

function closeSidebar() {
  $("chat").classList.remove("sidebar-open");
  $("open-sidebar").setAttribute("aria-expanded", "false");
  $("shade").hidden = true;
}

function openSidebar() {
  $("chat").classList.add("sidebar-open");
  $("open-sidebar").setAttribute("aria-expanded", "true");
  $("shade").hidden = false;
  $("new-chat").focus();
}

export function mount() {
  now = fresh();
  $("open-sidebar").append(icon("menu"));
  $("open-sidebar").addEventListener("click", openSidebar);
  $("shade").addEventListener("click", closeSidebar);
  $("new-chat").addEventListener("click", newChat);
  document.querySelector(".brand").addEventListener("click", () => location.hash === "#/chat" && newChat());
  $("pick-model").addEventListener("change", () => {
    now.set("model", $("pick-model").value);
    remember({ model: now.model });
    changedSettings();
    draw();
  });
  const tokens = $("show-tokens");
  tokens.setAttribute("aria-pressed", String(Boolean(remembered().tokens)));
  tokens.addEventListener("click", () => {
    const on = tokens.getAttribute("aria-pressed") !== "true";
    tokens.setAttribute("aria-pressed", String(on));
    remember({ tokens: on });
    draw();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || $("chat").hidden || document.querySelector("dialog[open], :popover-open")) return;
    if ($("chat").classList.contains("sidebar-open")) {
      closeSidebar();
      $("open-sidebar").focus();
    } else if (!panel.close()) now.running?.stop();
  });
  server.ready.then((info) => {
    keeper.enabled = info.store;
    composer.examples(info.models[0].examples ?? []);
    if (now.nodes.size === 0 && !remembered().settings) now.settings = startSettings(info.models[0].context);
    draw();
    sidebar.refresh();
  });
  return { show: (id) => (opening = open(id)), hide: () => panel.close() };
}
