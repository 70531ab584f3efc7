// A small tokenizer for the code that models write most. Each language is a list of (class, pattern);
// the first pattern that matches at a place names it, what matches none stays plain.

const END = "(?![\\s\\S])"; // of the text; an unfinished string runs to it while the answer streams
const NUMBER = ["number", String.raw`\b(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\w*\b`];
const CALL = ["call", String.raw`\b[A-Za-z_$][\w$]*(?=\()`];
const QUOTED = ["string", String.raw`"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?`];

const words = (kind, list) => [kind, `\\b(?:${list.trim().split(/\s+/).join("|")})\\b`];

const python = [
  ["comment", "#[^\\n]*"],
  ["string", String.raw`(?:\b[rbfuRBFU]{1,2})?(?:"""[\s\S]*?(?:"""|${END})|'''[\s\S]*?(?:'''|${END})|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)`],
  ["meta", "@[\\w.]+"],
  words("keyword", `and as assert async await break case class continue def del elif else except finally for from
    global if import in is lambda match nonlocal not or pass raise return try while with yield`),
  words("literal", "True False None self cls"),
  NUMBER,
  CALL,
];

const javascript = [
  ["comment", String.raw`//[^\n]*|/\*[\s\S]*?(?:\*/|${END})`],
  ["string", String.raw`"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|${"`"}(?:\\[\s\S]|[^${"`"}\\])*(?:${"`"}|${END})`],
  words("keyword", `as async await break case catch class const continue debugger default delete do else enum export
    extends finally for from function if implements import in instanceof interface let new of return static super
    switch throw try type typeof var void while yield`),
  words("literal", "true false null undefined this NaN Infinity"),
  NUMBER,
  CALL,
];

const c = [
  ["comment", String.raw`//[^\n]*|/\*[\s\S]*?(?:\*/|${END})`],
  ["meta", String.raw`#[ \t]*(?:include|define|undef|ifn?def|if|elif|else|endif|pragma|error)\b[^\n]*|#!?\[[^\]\n]*\]`],
  ["string", String.raw`"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])'`],
  words("keyword", `abstract alignas as async await auto break case catch class concept const constexpr continue crate
    default defer delete do dyn else enum explicit export extends extern final finally fn for friend func go goto if
    impl implements import in inline instanceof interface let loop match mod move mut namespace new noexcept operator
    override package private protected pub public range ref register return sealed select sizeof static struct super
    switch synchronized template throw throws trait try type typedef typename union unsafe use using var virtual
    volatile where while yield`),
  words("literal", `true false null nullptr NULL nil self this void bool char short int long float double unsigned
    signed string size_t i8 i16 i32 i64 u8 u16 u32 u64 usize isize f32 f64 str String uint int32_t int64_t uint8_t`),
  NUMBER,
  CALL,
];

const shell = [
  ["comment", String.raw`(?<![^\s;])#[^\n]*`],
  ["string", String.raw`"(?:\\[\s\S]|[^"\\])*(?:"|${END})|'[^']*(?:'|${END})`],
  ["literal", String.raw`\$(?:\{[^}\n]*\}?|\w+|[@#?*!$-])`],
  words("keyword", "if then elif else fi for while until do done case esac in function select return exit export local set source"),
  ["number", String.raw`(?<=\s)--?[A-Za-z][\w-]*`],
  ["call", String.raw`(?<=^|\n|[|;&(]\s*)(?:\$ )?[A-Za-z_][\w./-]*(?!\w*=)`],
];

const json = [
  ["call", String.raw`"(?:\\.|[^"\\\n])*"(?=\s*:)`],
  QUOTED,
  words("literal", "true false null"),
  NUMBER,
  ["comment", String.raw`//[^\n]*`],
];

const diff = [
  ["meta", String.raw`(?<=^|\n)(?:@@[^\n]*|diff [^\n]*|index [^\n]*|(?:\+\+\+|---) [^\n]*)`],
  ["added", String.raw`(?<=^|\n)\+[^\n]*`],
  ["removed", String.raw`(?<=^|\n)-[^\n]*`],
];

const NAMES = [
  [python, "py python python3 pyi"],
  [javascript, "js javascript jsx mjs ts tsx typescript"],
  [c, "c h cc cpp c++ hpp cuda java cs csharp go rust rs kotlin swift scala php glsl"],
  [shell, "sh bash shell zsh console shell-session"],
  [json, "json jsonl json5 jsonc"],
  [diff, "diff patch"],
];
const LANGUAGES = new Map(NAMES.flatMap(([rules, names]) => names.split(" ").map((name) => [name, compiled(rules)])));

function compiled(rules) {
  return { kinds: rules.map(([kind]) => kind), pattern: new RegExp(rules.map(([, source]) => `(${source})`).join("|"), "g") };
}

// `code` as text nodes and spans of class "hl-…"; the text is kept to the letter.
export function highlighted(code, language) {
  const rules = LANGUAGES.get(language.toLowerCase());
  if (!rules || code.length > 100_000) return [code];
  const nodes = [];
  let at = 0;
  for (const match of code.matchAll(rules.pattern)) {
    if (!match[0]) continue;
    if (match.index > at) nodes.push(code.slice(at, match.index));
    const span = document.createElement("span");
    span.className = `hl-${rules.kinds[match.slice(1).findIndex((group) => group !== undefined)]}`;
    span.textContent = match[0];
    nodes.push(span);
    at = match.index + match[0].length;
  }
  if (at < code.length) nodes.push(code.slice(at));
  return nodes;
}
