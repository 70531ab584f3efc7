"""What a docstring says, in the pieces that questions are made of: summary, example, returns.

Nothing here invents: every piece is a part of the docstring, with reStructuredText markup taken out where
it would stand in the way of reading.
"""

from __future__ import annotations

import inspect
import re

SUMMARY_CHARS = 160
DOC_CHARS = 1200
EXAMPLE_CHARS = 320

_ROLE = re.compile(r":[a-zA-Z]+(?::[a-zA-Z]+)?:`(?P<text>[^`<]+?)(?:\s*<(?P<target>[^`>]*)>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{0,2}")
_LITERAL = re.compile(r"``([^`]+)``")
_REFERENCE = re.compile(r"`([^`]+)`_{1,2}(?!\w)")
_STRONG = re.compile(r"(?<![\w*`])(\*\*?)(\w[\w ?!,':.-]*?)\1(?![\w*])")
_MARKDOWN_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)\s]*\)|\[[^\]\s]*\])")
_URL = re.compile(r"\s*<https?://[^>\s]+>")

# A full stop ends a sentence when something that starts a sentence follows and no abbreviation precedes.
_SENTENCE_END = re.compile(r"[.!?]['\")`]*(?=\s+[A-Z`\"'(*<\[\d])|[.!?]['\")`]*$")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|Mr|Dr|St|No|Fig|Eq|Sec|al|incl|def|w\.r\.t)|\b[A-Z])\.$"
)
_EMPTY_TALK = re.compile(
    r"(?:todo|fixme|xxx|hack)\b|see (?:the )?(?:base|super|parent|class|doc|help|also|:)|"
    r"(?:same|as) (?:as|in|above)\b|alias (?:for|of|to)\b|docstring|inherited|undocumented|"
    r"internal\b|private\b|copyright\b|\(c\)|usage:|-\*-|#!|no doc|names of the module",
    re.IGNORECASE,
)
_UNDERLINE = re.compile(r"^\s*([=\-~^\"'`*+#.])\1{2,}\s*$")
_SIGNATURE_LINE = re.compile(
    r"^(?P<name>[\w.]+)(?P<arguments>\([^()]*(?:\([^()]*\)[^()]*)*\))\s*(?:(?:-+>|--|=|:)\s*(?P<rest>.*)|$|\[.*)"
)
_RETURNS_FIELD = re.compile(
    r"^[ \t]*:returns?:[ \t]*(?P<text>\S.*(?:\n(?![ \t]*:\w)[ \t]*\S.*)*)", re.M
)
_RETURNS_SECTION = re.compile(
    r"^(?P<indent>[ \t]*)Returns?:?[ \t]*\n(?P<under>[ \t]*-{3,}[ \t]*\n)?(?P<body>(?:[ \t]+\S.*\n?|(?<=-\n)\S.*\n?)+)",
    re.M,
)
_DOCTEST_FLAGS = re.compile(r"\s*#\s*doctest:.*$")
_FIELD = re.compile(r"^\s*(?::[a-zA-Z]+[^:]*:|\.\.\s|@\w+|\||!!!|\?\?\?)")


def clean_doc(doc: str, limit: int = DOC_CHARS) -> str:
    """The docstring without its indentation, at most `limit` characters, cut at the end of a line."""
    text = inspect.cleandoc(doc).replace("\0", "").strip()
    if len(text) <= limit:
        return text
    cut = text[:limit]
    return (cut[: cut.rfind("\n")] if "\n" in cut[limit // 2 :] else cut).rstrip()


def plain(text: str) -> str:
    """Inline markup to what a reader would see: ``:func:`~a.b``` and double backticks become `b`."""
    text = _ROLE.sub(_role_text, text)
    text = _LITERAL.sub(r"`\1`", text)
    text = _LINK.sub(r"\1", text)
    text = _REFERENCE.sub(r"\1", text)
    text = _URL.sub("", _MARKDOWN_LINK.sub(r"\1", text))
    return _STRONG.sub(r"\2", text)


def _role_text(match: re.Match[str]) -> str:
    text = match["text"].strip()
    return f"`{text.rsplit('.', 1)[-1]}`" if text.startswith("~") else f"`{text.lstrip('!')}`"


def first_sentence(text: str, limit: int = SUMMARY_CHARS) -> str:
    """The first sentence of `text` on one line; beyond `limit` it is cut between words, with '…'."""
    line = " ".join(text.split())
    end = len(line)
    for match in _SENTENCE_END.finditer(line):
        if not _ABBREVIATION.search(line[: match.start() + 1]):
            end = match.end()
            break
    return clip(line[:end], limit)


def clip(line: str, limit: int) -> str:
    """`line` within `limit` characters: cut after a word, with '…' to show it."""
    if len(line) <= limit:
        return line
    cut = line[: limit - 1]
    words = cut.rsplit(" ", 1)[0] if " " in cut[limit // 2 :] else cut
    return words.rstrip(" ,;:(-") + "…"


def summary(doc: str, limit: int = SUMMARY_CHARS) -> str:
    """The first sentence that says something, or '' when none does.

    Passed over: call lines such as `getattr(object, name) -> value` (what follows the arrow is taken when there
    is nothing else), headings, doctests, directives, code. A first sentence of fewer than three words, or
    one that describes nothing (TODO, "see base class", "alias for …"), ends the search.
    """
    after_arrow = ""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(doc))[:4]:
        lines = paragraph.split("\n")
        while lines and (call := _SIGNATURE_LINE.match(lines[0].strip())):
            after_arrow = after_arrow or (call["rest"] or "").strip()
            lines = lines[1:]
        while lines and _UNDERLINE.match(lines[0]):
            lines = lines[1:]
        if len(lines) >= 2 and _UNDERLINE.match(lines[1]):
            lines = lines[2:]
        if not lines or _is_apparatus(lines[0]):
            continue
        sentence = first_sentence(plain(" ".join(lines)), limit).rstrip(":").strip()
        if _says_something(sentence):
            return sentence
        if sentence.endswith((".", "!", "?")) or _EMPTY_TALK.match(sentence):
            return ""
    sentence = first_sentence(plain(after_arrow), limit)
    return sentence if _says_something(sentence) else ""


def _is_apparatus(line: str) -> bool:
    """Whether a paragraph that begins so is not prose: field, directive, doctest, list, code, source note."""
    start = line.lstrip()
    return bool(
        _FIELD.match(line)
        or start.startswith((">>>", "$ ", "-", "**Source code", "Source code"))
        or re.match(r"[\w.]+ = |(?:from [\w.]+ )?import \w", start)
        or (line.startswith("    ") and not start[:1].isupper())
    )


def _says_something(sentence: str) -> bool:
    words = re.findall(r"[^\W\d_]+", sentence)
    letters = sum(character.isalpha() or character.isspace() for character in sentence)
    return (
        len(words) >= 3
        and len(sentence.split()) >= 3
        and letters >= 0.6 * len(sentence)
        and not _EMPTY_TALK.match(sentence)
    )


def call_line(doc: str, name: str) -> str:
    """The arguments in a first line such as `getattr(object, name[, default]) -> value`: '(object, …)'.

    C functions without a text signature describe their arguments only there. '' when there is no such line.
    """
    match = _SIGNATURE_LINE.match(inspect.cleandoc(doc).split("\n", 1)[0].strip())
    if match and match["name"].rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]:
        return match["arguments"]
    return ""


def example(doc: str, limit: int = EXAMPLE_CHARS) -> str:
    """The first doctest with its output: from the first `>>>` to the first blank line after an output.

    '' when there is none, or when it is longer than `limit` characters or holds a traceback.
    """
    lines = inspect.cleandoc(doc).split("\n")
    start = next((i for i, line in enumerate(lines) if line.lstrip().startswith(">>> ")), None)
    if start is None:
        return ""
    indent = len(lines[start]) - len(lines[start].lstrip())
    block: list[str] = []
    shown = False
    for line in lines[start:]:
        text = line[indent:] if not line[:indent].strip() else line.strip()
        if not text.strip():
            if shown:
                break
            continue
        code = text.startswith((">>>", "..."))
        if not code and block and not block[-1].startswith((">>>", "...")) and not shown:
            break
        if text.startswith("```"):
            break
        shown = shown or not code
        block.append(_DOCTEST_FLAGS.sub("", text).rstrip())
    while block and block[-1] == ">>>":
        block.pop()
    found = "\n".join(block)
    fits = shown and len(found) <= limit and "Traceback (" not in found
    return found if fits else ""


def returns(doc: str, annotation: str, limit: int = SUMMARY_CHARS) -> str:
    """What is returned: from `:return:`, a Returns section (NumPy or Google form), a summary that begins
    with "Return", or the annotation."""
    text = inspect.cleandoc(doc)
    match = _RETURNS_FIELD.search(text)
    if match:
        return first_sentence(plain(match["text"]), limit)
    match = _RETURNS_SECTION.search(text)
    if match:
        body = inspect.cleandoc("\n" + match["body"]).split("\n")
        if match["under"] and len(body) > 1 and body[1].startswith((" ", "\t")):
            body = [line for line in body[1:] if line.strip()]  # NumPy: type line, then description
        sentence = first_sentence(plain(" ".join(body)), limit)
        if sentence:
            return sentence
    match = re.match(r"Returns? (?=[a-zA-Z`'\"(])", short := summary(doc, limit))
    if match and not short.endswith("…"):
        return short[match.end() :]
    return f"`{annotation}`" if annotation and annotation not in ("None", "Any") else ""
