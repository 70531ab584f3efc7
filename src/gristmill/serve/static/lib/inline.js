// The inside of a Markdown paragraph as DOM nodes: code, emphasis, links, line breaks. After CommonMark's
// delimiter algorithm; HTML and images stay what they are, text, and a link leads to http, https or mail alone.

import { element } from "./dom.js";

const PLAIN = /(?:(?!https?:\/\/)[^\\`*_~[!<\n])+/y;
const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const TICKS = /`+/y;
const RUN = /\*+|_+|~~(?!~)/y;
const BREAK = / *\n */y;
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]*)>/y;
const BARE = /https?:\/\/[^\s<>`]*[^\s<>`.,:;"'!?*_~)\]]/y;
const TARGET = /\(\s*<?((?:[^\s()<>]|\([^\s()]*\))*)>?(?:\s+(?:"[^"\n]*"|'[^'\n]*'))?\s*\)/y;
const SAFE = /^(?:https?:\/\/|mailto:)/i;
const MAX_LABEL = 1000, MAX_DEPTH = 16;

export function inline(text) {
  const parts = []; // {node} or a delimiter {mark, n, opens, closes}
  const unclosed = new Set(); // lengths of backtick runs known to have no partner further on
  let at = 0;
  const take = (pattern) => {
    pattern.lastIndex = at;
    const match = pattern.exec(text);
    if (match) at = pattern.lastIndex;
    return match;
  };
  const put = (node, depth = 0) => parts.push({ node, depth });
  while (at < text.length) {
    let match;
    if ((match = take(PLAIN))) put(match[0]);
    else if ((match = take(BREAK))) put(element("br"));
    else if ((match = take(ESCAPED))) put(match[1]);
    else if ((match = take(TICKS))) {
      const n = match[0].length;
      const end = unclosed.has(n) ? -1 : closing(text, at, n);
      if (end < 0) {
        unclosed.add(n);
        put(match[0]);
      } else {
        const code = text.slice(at, end).replaceAll("\n", " ");
        put(element("code", {}, /^ .*[^ ].* $/.test(code) ? code.slice(1, -1) : code));
        at = end + n;
      }
    } else if (text[at] === "*" || text[at] === "_" || text.startsWith("~~", at)) {
      const from = at;
      match = take(RUN);
      if (match) parts.push(delimiter(text, from, match[0]));
      else put(take(/~+/y)[0]);
    } else if ((match = take(ANGLE)) || (match = take(BARE))) put(link(match[1] ?? match[0], [match[1] ?? match[0]]));
    else {
      const image = text.startsWith("![", at);
      const open = image ? at + 1 : at;
      const end = text[open] === "[" ? labelEnd(text, open) : -1;
      TARGET.lastIndex = end + 1;
      const target = end < 0 ? null : TARGET.exec(text);
      if (target && SAFE.test(target[1])) {
        at = TARGET.lastIndex;
        put(link(target[1], inline(text.slice(open + 1, end))), 1);
      } else put(text[at++]);
    }
  }
  return emphasized(parts).map((part) => part.node ?? part.mark.repeat(part.n));
}

function link(href, label) {
  return element("a", { href, target: "_blank", rel: "noopener noreferrer" }, label);
}

function closing(text, from, n) {
  for (const match of text.slice(from).matchAll(/`+/g)) if (match[0].length === n) return from + match.index;
  return -1;
}

function labelEnd(text, open) {
  let depth = 0;
  const last = Math.min(text.length, open + MAX_LABEL);
  for (let i = open; i < last; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "[") depth++;
    else if (text[i] === "]" && --depth === 0) return i;
  }
  return -1;
}

// Whether a run may open or close emphasis: CommonMark's left- and right-flanking.
function delimiter(text, from, run) {
  const before = text[from - 1] ?? " ", after = text[from + run.length] ?? " ";
  const space = /\s/, sign = /[\p{P}\p{S}]/u;
  const left = !space.test(after) && (!sign.test(after) || space.test(before) || sign.test(before));
  const right = !space.test(before) && (!sign.test(before) || space.test(after) || sign.test(after));
  const word = run[0] === "_";
  return {
    mark: run[0],
    n: run.length,
    whole: run.length, // n shrinks as marks find partners
    opens: left && (!word || !right || sign.test(before)),
    closes: right && (!word || !left || sign.test(after)),
  };
}

function emphasized(parts) {
  const stack = []; // indexes into `done` of delimiters that may open
  const done = [];
  for (const part of parts) {
    if (part.closes) close(part, stack, done);
    if (part.node !== undefined) done.push(part);
    else if (part.n > 0) {
      if (part.opens) stack.push(done.length);
      done.push(part);
    }
  }
  return done;
}

function close(part, stack, done) {
  for (let s = stack.length - 1; s >= 0 && part.n > 0; s--) {
    const opener = done[stack[s]];
    if (opener.mark !== part.mark) continue;
    const both = opener.closes || part.opens;
    if (both && (opener.whole + part.whole) % 3 === 0 && (opener.whole % 3 || part.whole % 3)) continue; // CommonMark's rule of three
    const size = part.mark === "~" || (opener.n > 1 && part.n > 1) ? 2 : 1;
    if (opener.n < size || part.n < size) continue;
    const inside = done.splice(stack[s] + 1);
    const depth = 1 + inside.reduce((most, { depth = 0 }) => Math.max(most, depth), 0);
    if (depth > MAX_DEPTH) {
      done.push(...inside);
      return;
    }
    stack.length = s + 1; // openers inside stay text
    const tag = part.mark === "~" ? "del" : size === 2 ? "strong" : "em";
    done.push({ node: element(tag, {}, inside.map((one) => one.node ?? one.mark.repeat(one.n))), depth });
    opener.n -= size;
    part.n -= size;
    if (opener.n === 0) {
      done.splice(stack[s], 1);
      stack.pop();
    } else s++; // what is left of it may open again
  }
}
