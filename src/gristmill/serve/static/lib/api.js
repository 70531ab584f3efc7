// Everything that is asked of the server goes through here: the key, errors in words, event streams.

import { ask } from "./dialog.js";

const KEY = "gristmill-key";
export const UNREACHABLE = "The server cannot be reached. Is it still running?";

// A refusal of the server, or a server that did not answer (status 0).
export class ApiError extends Error {
  constructor(message, status, body = null) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

let asking = null; // one dialog for all requests that were refused at once

function wantKey(refused) {
  asking ??= ask({
    title: "This server wants a key",
    text: "Its keeper gives them out. The key stays in this tab and is forgotten when you close it.",
    label: "API key",
    type: "password",
    action: "Use this key",
    error: refused ? "The server refused that key." : "",
  }).finally(() => (asking = null));
  return asking;
}

export async function changeKey() {
  const key = await wantKey(false);
  if (key) sessionStorage.setItem(KEY, key);
}

// A response that is ok; `body` is sent as JSON unless it is a Blob. Throws ApiError, or AbortError.
export async function request(path, { method = "GET", body, headers = {}, ...rest } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const plain = body === undefined || body instanceof Blob;
    let response;
    try {
      response = await fetch(path, {
        method,
        body: plain ? body : JSON.stringify(body),
        headers: {
          ...(!plain && { "content-type": "application/json" }),
          ...(key && { authorization: `Bearer ${key}` }),
          ...headers,
        },
        ...rest,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(UNREACHABLE, 0);
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    if (sessionStorage.getItem(KEY) !== key) continue; // another request has asked meanwhile
    const given = await wantKey(Boolean(key));
    if (!given) throw new ApiError("The server wants an API key; without one it answers nothing.", 401);
    sessionStorage.setItem(KEY, given);
  }
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

async function refusal(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // not JSON: the status has to do
  }
  const said = body?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  const wait = response.status === 429 && response.headers.get("retry-after");
  return new ApiError(wait ? `${said} Try again in ${wait} s.` : said, response.status, body);
}

// Yields the parsed data of each server-sent event until [DONE].
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      part = { done: true };
    }
    if (part.done) throw new ApiError("The connection to the server was lost before the answer ended.", 0);
    held += part.value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const event = held.slice(0, end);
      held = held.slice(end + 2);
      if (!event.startsWith("data: ")) continue; // a ping
      if (event === "data: [DONE]") return;
      yield JSON.parse(event.slice(6));
    }
  }
}

// What the server is and has; asked until it answers, so that nothing is sent before it is known.
export const server = { info: null, ready: null, onchange: () => {}, retry: () => {} };

export function connect() {
  server.ready = (async () => {
    for (;;) {
      try {
        server.info = await json("/app/info");
        server.onchange(null);
        return server.info;
      } catch (error) {
        server.onchange(error);
        await new Promise((resolve) => {
          server.retry = resolve;
          if (error.status !== 401) setTimeout(resolve, 2000); // without a key, asking again is the person's turn
        });
      }
    }
  })();
  return server.ready;
}
