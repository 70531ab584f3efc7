"""Wikitext to plain text with markdown headings and lists, in one pass over its brackets.

Our own parser and not mwparserfromhell: on the same dense markup it read 3.7 to 7.8 MB/s of one core, where
mwparserfromhell 0.7.2 (its C tokenizer, then strip_code) read 0.5 to 0.6. What is dropped: templates (but a
few that stand inside sentences), tables, references, comments, galleries, files, categories. What stays:
links' text, TeX of formulas, code. Brackets that never close stay as text, so one typing error cannot
swallow the rest of an article.
Source of the rules: https://www.mediawiki.org/wiki/Help:Formatting and /wiki/Help:Links
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection
from dataclasses import dataclass, field

MAX_DEPTH = (
    200  # deeper brackets are text: nobody writes them, and each level copies its content once
)

# Each alternative begins with a literal, which lets `re` skip to the next candidate: twice as fast in all.
_TOKEN = re.compile(
    r"\{(?:\{+|\|)|\}\}+|\[\[|\]\]|\|\}(?!\})"
    r"|<(?:!--|(?P<tag>[A-Za-z][A-Za-z0-9]{0,20})(?P<attributes>[^<>]{0,500}?)(?P<self>/?)>"
    r"|/[A-Za-z][A-Za-z0-9]{0,20}\s{0,9}>)"
)
# Elements whose content is no wikitext, or no text of the article.
_DROPPED = frozenset(
    """ref references gallery timeline imagemap graph score templatedata templatestyles mapframe
    maplink categorytree inputbox section hiero chart indicator style script noinclude""".split()
)
_VERBATIM = frozenset(("math", "chem", "ce", "nowiki", "pre", "syntaxhighlight", "source", "code"))
_LINE_BREAKS = frozenset(("br", "hr", "p", "div", "blockquote", "center", "li", "tr", "dd", "dt"))

# Templates that are words of a sentence: what is shown is this positional argument (from 1).
_SHOWN = {
    "lang": 2,
    "langx": 2,
    "transliteration": -1,
    "transl": -1,
    "nowrap": 1,
    "nobr": 1,
    "nobold": 1,
    "small": 1,
    "big": 1,
    "em": 1,
    "strong": 1,
    "mvar": 1,
    "var": 1,
    "math": 1,
    "sub": 1,
    "sup": 1,
    "abbr": 1,
    "tooltip": 1,
    "ill": 1,
    "interlanguage link": 1,
    "quote": 1,
    "blockquote": 1,
    "cquote": 1,
    "circa": 1,
    "c.": 1,
    "formatnum": 1,
    "val": 1,
    "num": 1,
    "code": 1,
    "tt": 1,
    "kbd": 1,
    "samp": 1,
    "angbr": 1,
    "uc": 1,
    "lc": 1,
    "smallcaps": 1,
    "sc": 1,
    "convert": 0,
    "cvt": 0,
}
_SIGNS = {
    "snd": " – ",
    "spnd": " – ",
    "spaced ndash": " – ",
    "ndash": "–",
    "mdash": "—",
    "nbsp": " ",
}
_SIGNS |= {"'": "'", '"': '"', "!": "|", "=": "=", "!(": "[", ")!": "]", "dash": "–", "pi": "π"}

_FILES = frozenset(("file", "image", "media", "category"))
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]{2,8}){0,2}|simple")
_EXTERNAL = re.compile(
    r"\[(?:https?:|ftp:|mailto:)?//[^\s\]\[]{1,1000}(?:[ \t]+([^\]\[\n]{0,500}))?\]"
)
_QUOTES = re.compile(r"'{2,5}")
_SWITCH = re.compile(r"__[A-Z]{3,30}__")
_HEADING = re.compile(r"(={1,6})[ \t]*(.{1,500}?)[ \t]*\1[ \t]*$")
_STASH = re.compile("\x00(\\d+)\x00")
_SPACE = re.compile(r"[ \t\xa0]+")
_HOLES = re.compile(r"\([\s;,:]{0,20}\)")  # what a dropped pronunciation leaves: "( ; )"
_LOOSE_COMMA = re.compile(r"(?<=\()[ \xa0]{0,5}[;,]\s{0,5}|[ \xa0]{0,5}[;,]\s{0,5}(?=\))")
# Sections that hold references and links, not text.
TAIL_SECTIONS = frozenset(
    [
        "references",
        "external links",
        "see also",
        "further reading",
        "notes",
        "citations",
        "footnotes",
        "notes and references",
        "references and notes",
        "bibliography",
        "sources",
        "notelist",
        "einzelnachweise",
        "weblinks",
        "siehe auch",
        "literatur",
        "voir aussi",
        "références",
        "notes et références",
        "liens externes",
        "véase también",
        "referencias",
        "enlaces externos",
        "note",
        "voci correlate",
        "collegamenti esterni",
    ]
)


@dataclass(slots=True)
class _Frame:
    """An open bracket: "text" (the article), "template", "link" or "table"; width: braces left to close."""

    kind: str
    opener: str = ""
    width: int = 0
    parts: list[str] = field(default_factory=list)


def wikitext_text(source: str, namespaces: Collection[str] = ()) -> str:
    """The article's text. `namespaces`: the wiki's own lower-case names for files and categories.

    Time is linear in len(source) (times MAX_DEPTH at worst); never raises.
    """
    return _Parser(source.replace("\x00", ""), _FILES.union(namespaces)).text()


class _Parser:
    def __init__(self, source: str, files: Collection[str]) -> None:
        self.source = source
        self.files = files
        self.stack = [_Frame("text")]
        self.open = {"template": 0, "link": 0, "table": 0}
        self.stash: list[str] = []
        self.never: set[str] = set()  # closers that do not occur any more: searching once is enough

    def text(self) -> str:
        source, position = self.source, 0
        while found := _TOKEN.search(source, position):
            if found.start() > position:
                self._put(source[position : found.start()])
            position = self._token(found)
        self._put(source[position:])
        while len(self.stack) > 1:
            self._flatten()
        return self._finish("".join(self.stack[0].parts))

    def _put(self, text: str) -> None:
        self.stack[-1].parts.append(text)

    def _push(self, kind: str, opener: str, width: int = 0) -> None:
        if len(self.stack) > MAX_DEPTH:
            self._put(opener)
            return
        self.stack.append(_Frame(kind, opener, width))
        self.open[kind] += 1

    def _pop(self) -> _Frame:
        frame = self.stack.pop()
        self.open[frame.kind] -= 1
        return frame

    def _flatten(self) -> None:
        """The top frame never closed: its content stays, its opener goes."""
        frame = self._pop()
        self.stack[-1].parts.extend(frame.parts)

    def _token(self, found: re.Match[str]) -> int:
        """Handles one token; where to go on."""
        token = found[0]
        start = token[:2]
        if start == "{{":
            self._push("template", token, len(token))
        elif start == "}}":
            self._close_templates(len(token), token)
        elif start == "[[":
            self._push("link", "[[")
        elif start == "]]":
            if self.stack[-1].kind == "link":
                self._put(self._link("".join(self._pop().parts)))
            else:
                self._put("" if self.open["link"] else "]]")
        elif start == "{|" and self._begins_line(found.start()):
            self._push("table", "{|")
        elif start == "|}" and self._begins_line(found.start()) and self.open["table"]:
            while self.stack[-1].kind != "table":
                self._flatten()
            self._pop()
        elif start == "<!":
            end = self._find("-->", found.end())
            return end + 3 if end >= 0 else found.end()
        elif start == "</":
            self._put("\n" if token[2:-1].strip().lower() in _LINE_BREAKS else "")
        elif found["tag"]:
            return self._tag(found)
        else:
            self._put(token)
        return found.end()

    def _begins_line(self, position: int) -> bool:
        """Whether only indentation stands before it on its line: elsewhere "{|" and "|}" are no table."""
        before = self.source[max(0, position - 20) : position]
        line = before.rpartition("\n")[2]
        return not line.strip(" \t:*") and (len(line) < len(before) or len(before) == position)

    def _close_templates(self, width: int, text: str) -> None:
        if not self.open["template"]:
            self._put(text)
            return
        while width >= 2 and self.open["template"]:
            while self.stack[-1].kind != "template":
                self._flatten()
            frame = self.stack[-1]
            if (
                frame.width > width + 1
            ):  # "{{{{a}} b}}": the inner two are closed, the outer still open
                frame.width -= width
                return
            width -= frame.width
            self._pop()
            self._put(_template(frame.parts))

    def _find(self, closer: str, start: int) -> int:
        if closer in self.never:
            return -1
        end = self.source.find(closer, start)
        if end < 0:
            self.never.add(closer)
        return end

    def _tag(self, found: re.Match[str]) -> int:
        name = found["tag"].lower()
        if name in _DROPPED or name in _VERBATIM:
            if found["self"]:
                return found.end()
            end = self._find(f"</{found['tag']}", found.end())
            if end < 0:
                return found.end()
            if name in _VERBATIM:
                self._verbatim(name, found["attributes"], self.source[found.end() : end])
            after = self.source.find(">", end, end + 40)
            return after + 1 if after >= 0 else end + len(name) + 2
        self._put("\n" if name in _LINE_BREAKS else "")
        return found.end()

    def _verbatim(self, name: str, attributes: str, content: str) -> None:
        if name in ("math", "chem", "ce"):
            tex = " ".join(content.split())
            tex = f"$${tex}$$" if "block" in attributes else f"${tex}$"
            self._stash(tex if len(tex) > 2 else "")
        elif name == "nowiki":
            self._stash(html.unescape(content))
        elif name == "code":
            self._stash(f"`{html.unescape(_strip_tags(content)).strip()}`")
        else:
            language = re.search(r"""lang\s{0,9}=\s{0,9}["']?([\w+#-]{1,20})""", attributes)
            code = content.strip("\n").rstrip()
            code = html.unescape(_strip_tags(code)) if name == "pre" else code
            self._put("\n")
            self._stash(f"```{language[1] if language else ''}\n{code}\n```")
            self._put("\n")

    def _stash(self, text: str) -> None:
        self._put(f"\x00{len(self.stash)}\x00")
        self.stash.append(text)

    def _link(self, inner: str) -> str:
        target, bar, rest = inner.partition("|")
        target = target.strip()
        if target.startswith(":"):
            return rest.rpartition("|")[2] if bar else target[1:]
        prefix, colon, _ = target.partition(":")
        if colon:
            prefix = prefix.strip().replace("_", " ")
            if prefix.lower() in self.files or (not bar and _LANGUAGE.fullmatch(prefix)):
                return ""
        return rest if bar else target.removeprefix("#").replace("_", " ")

    def _finish(self, text: str) -> str:
        text = _EXTERNAL.sub(lambda found: found[1] or "", text)
        text = html.unescape(_SWITCH.sub("", _QUOTES.sub("", text)))
        text = _LOOSE_COMMA.sub("", _HOLES.sub("", text))
        text = "\n".join(_without_empty_sections(_lines(text)))
        text = _STASH.sub(lambda found: self.stash[int(found[1])], text)
        return re.sub(r"\n{3,}", "\n\n", text).strip()


def _strip_tags(text: str) -> str:
    return re.sub(r"</?[A-Za-z][^<>]{0,200}>", "", text)


def _template(parts: list[str]) -> str:
    """What a template shows: for a few that are words in a sentence their argument, for the rest nothing."""
    name = "".join(parts[:1]).partition("|")[0].strip().lower().replace("_", " ")
    if name in _SIGNS:
        return _SIGNS[name]
    if name.startswith("lang-"):
        shown = 1
    elif name.startswith("formatnum:"):
        return name.removeprefix("formatnum:")
    elif name in _SHOWN:
        shown = _SHOWN[name]
    else:
        return ""
    arguments = [a.strip() for a in "".join(parts).split("|")[1:]]
    named = {k.strip(): v.strip() for k, _, v in (a.partition("=") for a in arguments)}
    values = [a for a in arguments if not re.match(r"\s*\w[\w ]{0,30}=", a)]
    if shown == 0:
        return " ".join(
            values[:4] if values[1:2] in (["-"], ["to"], ["and"], ["by"]) else values[:2]
        )
    if shown == -1:
        return values[-1] if values else ""
    return (
        values[shown - 1] if len(values) >= shown else named.get(str(shown), named.get("text", ""))
    )


def _lines(text: str) -> list[str]:
    """Lines with headings and lists as markdown and spaces put right."""
    out: list[str] = []
    counters: list[tuple[str, int]] = []  # at each depth: the list's mark and how many items it has
    for line in text.split("\n"):
        line = _SPACE.sub(" ", line).strip()
        first = line[:1]
        if first == "=" and (heading := _HEADING.fullmatch(line)):
            counters = []
            out += ["", "#" * max(2, len(heading[1])) + " " + heading[2], ""]
        elif first and first in "*#:;":
            marks = re.match(r"[*#:;]{1,20}", line)
            assert marks  # the line begins with one
            depth, last, rest = len(marks[0]), marks[0][-1], line[marks.end() :].strip()
            if not rest or rest == "-":
                continue
            counters = (counters + [("", 0)] * depth)[:depth]
            mark, count = counters[-1]
            counters[-1] = (last, count + 1 if mark == last else 1)
            sign = {"*": "- ", "#": f"{counters[-1][1]}. "}.get(last, "")
            out.append("  " * (depth - 1) * bool(sign) + sign + rest)
        else:
            counters = []
            out.append(line)
    return out


def _without_empty_sections(lines: list[str]) -> list[str]:
    """Without tail sections (with what is below them) and headings that nothing follows."""
    kept: list[str] = []
    dropping = 0
    for line in lines:
        level = len(line) - len(line.lstrip("#")) if line.startswith("##") else 0
        if level:
            if dropping and level > dropping:
                continue
            dropping = level if line[level:].strip().lower() in TAIL_SECTIONS else 0
        if not dropping:
            kept.append(line)
    out: list[str] = []
    below = 0  # the level of the next heading below, 0 after text, 1 at the end
    for line in reversed([*kept, "# end"]):
        level = len(line) - len(line.lstrip("#")) if re.match(r"#{1,6} ", line) else 0
        if level and below and below <= level:
            continue
        if level:
            below = level
        elif line:
            below = 0
        out.append(line)
    return out[::-1][:-1] if out and out[0] == "# end" else out[::-1]
