// The app: which page is shown, whether the server is there, and the key. Each page is a module loaded when first shown.

import { changeKey, connect, server } from "./lib/api.js";
import { $, count, element } from "./lib/dom.js";

const PAGES = {
  chat: { title: "Chat", load: () => import("./chat/page.js") },
  compare: { title: "Compare", load: () => import("./compare/page.js"), css: "/static/compare/compare.css" },
  models: { title: "Models", load: () => import("./models/page.js"), css: "/static/models/models.css" },
};
let shown = null; // {name, page}

function stylesheet(href) {
  return new Promise((resolve) => {
    const link = element("link", { rel: "stylesheet", href, onload: resolve, onerror: resolve });
    document.head.append(link);
  });
}

// "#/chat/ID" is page chat with the argument ID.
async function route() {
  if (location.hash && !location.hash.startsWith("#/")) return; // a place on the page
  const [, name = "chat", argument = ""] = location.hash.split("/");
  const page = PAGES[name];
  if (!page) {
    location.replace("#/chat");
    return;
  }
  page.module ??= (async () => {
    const [module] = await Promise.all([page.load(), page.css && stylesheet(page.css)]);
    return module.mount($(name));
  })();
  let mounted;
  try {
    mounted = await page.module;
  } catch (error) {
    page.module = null;
    trouble(`This page could not be loaded: ${error.message}`, "Try again", route);
    return;
  }
  if (location.hash.split("/")[1] !== name && location.hash) return; // the person has gone on
  if (shown?.name !== name) {
    shown?.page.hide?.();
    for (const section of document.querySelectorAll(".page")) section.hidden = section.id !== name;
    for (const link of document.querySelectorAll("[data-page]")) {
      if (link.dataset.page === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${page.title} – Gristmill`;
  }
  const first = shown?.name !== name;
  shown = { name, page: mounted };
  mounted.show(argument, first);
}

function trouble(text, action, run) {
  $("trouble").replaceChildren(element("span", {}, text), element("button", { type: "button", onclick: () => {
    $("trouble").hidden = true;
    run();
  } }, action));
  $("trouble").hidden = false;
}

server.onchange = (error) => {
  const { info } = server;
  if (error?.status === 401) return trouble(error.message, "Enter the key", enterKey);
  if (error) return trouble(error.message, "Try again", () => server.retry());
  $("trouble").hidden = true;
  const [model] = info.models;
  $("key").hidden = !info.keys_required;
  $("model").textContent = info.models.length > 1
    ? `${info.models.length} models`
    : `${model.name} · ${count(model.parameters)} parameters · context ${model.context.toLocaleString("en")} tokens`;
  return undefined;
};

async function enterKey() {
  await changeKey();
  server.retry();
}

$("key").addEventListener("click", enterKey);
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  (shown?.name === "chat" ? $("question") : $("main")).focus();
});
window.addEventListener("hashchange", route);
connect();
route();
