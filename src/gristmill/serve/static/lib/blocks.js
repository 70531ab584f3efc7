// Splits Markdown into blocks: plain data, no DOM. CommonMark with tables, without HTML and underlined headings.

const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

const blank = (line) => !line.trim();
const indent = (line) => line.length - line.trimStart().length;

// The blocks of a text, each with `from` and `to`, the lines it spans.
export function blocks(lines) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) {
      at++;
      continue;
    }
    const block = read(lines, at);
    found.push({ ...block, from: at });
    at = block.to;
  }
  return found;
}

function read(lines, at) {
  const line = lines[at];
  let match;
  if ((match = FENCE.exec(line))) return fence(lines, at, match);
  if ((match = HEADING.exec(line))) return { kind: "heading", level: match[1].length, text: match[2] ?? "", to: at + 1 };
  if (RULE.test(line)) return { kind: "rule", to: at + 1 };
  if (QUOTE.test(line)) return quote(lines, at);
  if (ITEM.test(line)) return list(lines, at);
  if (line.startsWith("    ")) return indented(lines, at);
  if (isTable(lines, at)) return table(lines, at);
  let to = at + 1;
  while (to < lines.length && !blank(lines[to]) && !starts(lines[to]) && !isTable(lines, to)) to++;
  return { kind: "paragraph", text: lines.slice(at, to).map((one) => one.trimStart()).join("\n").trimEnd(), to };
}

// Whether a line ends a paragraph before it. A number does only if it is 1: "in\n1984. A year" is no list.
function starts(line) {
  const item = ITEM.exec(line);
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)
    || Boolean(item && item[3] && !blank(line.slice(item[0].length)) && (!/\d/.test(item[2]) || parseInt(item[2]) === 1));
}

function fence(lines, at, [, pad, mark, info]) {
  const end = new RegExp(`^ {0,3}${mark[0] === "`" ? "`" : "~"}{${mark.length},}[ \\t]*$`);
  let to = at + 1;
  while (to < lines.length && !end.test(lines[to])) to++;
  const inner = lines.slice(at + 1, to).map((line) => line.slice(Math.min(pad.length, indent(line))));
  return { kind: "code", language: info.trim().split(/[\s{,]/)[0], text: inner.join("\n"), to: Math.min(to + 1, lines.length) };
}

function indented(lines, at) {
  let to = at;
  while (to < lines.length && (blank(lines[to]) || lines[to].startsWith("    "))) to++;
  while (blank(lines[to - 1])) to--;
  return { kind: "code", language: "", text: lines.slice(at, to).map((line) => line.slice(4)).join("\n"), to };
}

function quote(lines, at) {
  const inner = [];
  let to = at;
  while (to < lines.length) {
    if (QUOTE.test(lines[to])) inner.push(lines[to].replace(QUOTE, ""));
    else if (blank(lines[to]) || starts(lines[to]) || blank(inner.at(-1)) || starts(inner.at(-1))) break;
    else inner.push(lines[to]); // a paragraph goes on without its mark
    to++;
  }
  return { kind: "quote", lines: inner, to };
}

function list(lines, at) {
  const kindOf = (match) => match && match[2].at(-1);
  const first = ITEM.exec(lines[at]), ordered = /\d/.test(first[2]);
  const items = [];
  let loose = false, gap = 0, to = at;
  while (to < lines.length) {
    const match = ITEM.exec(lines[to]);
    if (kindOf(match) !== kindOf(first) || RULE.test(lines[to])) break;
    if (gap) loose = true;
    gap = 0;
    const pad = match[3].length;
    const column = match[1].length + match[2].length + (pad === 0 || pad > 4 ? 1 : pad);
    const inner = [lines[to++].slice(column)];
    while (to < lines.length) {
      const line = lines[to];
      if (blank(line)) gap++;
      else if (indent(line) >= column) gap = 0;
      else if (gap || starts(line) || ITEM.test(line)) break;
      inner.push(indent(line) >= column ? line.slice(column) : line.trimStart());
      to++;
    }
    items.push(inner.slice(0, inner.length - gap));
  }
  return { kind: "list", ordered, start: ordered ? parseInt(first[2]) : 1, loose, items, to: to - gap };
}

// Cells between the bars that are not escaped.
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function isTable(lines, at) {
  const below = lines[at + 1] ?? "";
  return lines[at].includes("|") && below.includes("-") && DELIMITER.test(below)
    && cells(lines[at]).length === cells(below).length;
}

function table(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
  let to = at + 2;
  while (to < lines.length && !blank(lines[to]) && !starts(lines[to])) to++;
  return { kind: "table", align, head: cells(lines[at]), rows: lines.slice(at + 2, to).map(cells), to };
}
