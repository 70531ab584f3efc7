"""LaTeX source made ready to read: inputs in place, comments gone, the author's macros expanded.

Code is put aside first, because "%" and "\\" mean nothing in it: \x00number\x00 stands for it.
Every step is linear in the size of the source and bounded in what it writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_INPUTS = 500
MAX_INPUT_DEPTH = 10
MAX_INPUT_CHARS = 8_000_000
MAX_ADDED = 1_000_000  # characters that macros may add; what would add more stays as it is
MAX_ROUNDS = 6  # macros in macros in macros

_VERBATIM = ("verbatim", "verbatim*", "lstlisting", "minted", "alltt", "Verbatim")
_COMMENT = re.compile(r"(?<!\\)((?:\\\\){0,50})%[^\n]*(?:\n[ \t]*)?")
_INPUT = re.compile(
    r"\\(?:input|include|subfile)\s{0,9}\{([^{}]{1,300})\}|\\input\s{1,9}([^\s{}\\]{1,300})"
)
_DEFINED = re.compile(
    r"\\(?:re|provide)?(?:newcommand|command)\*?\s{0,9}\{?\s{0,9}\\([A-Za-z]{1,40})\s{0,9}\}?\s{0,9}"
    r"(?:\[(\d)\])?\s{0,9}(?:\[([^\[\]]{0,200})\])?\s{0,9}(?=\{)"
    r"|\\def\s{0,9}\\([A-Za-z]{1,40})((?:#\d){0,9})\s{0,9}(?=\{)"
    r"|\\DeclareMathOperator\*?\s{0,9}\{\s{0,9}\\([A-Za-z]{1,40})\s{0,9}\}\s{0,9}(?=\{)"
)
_BLANKS = re.compile(r"\s{0,9}")
_USE = re.compile(r"\\([A-Za-z]+)")
OPTION = re.compile(r"\s{0,3}\[[^\[\]]{0,300}\]")


def assemble(source: str, include: Callable[[str], str | None], stash: list[str]) -> str:
    """The source with comments removed, verbatim text stashed, and what it inputs in place."""
    source = _clean(source, stash)
    added = 0
    used: set[str] = set()  # each file comes in once: a paper that inputs itself ends
    for _ in range(MAX_INPUT_DEPTH):
        parts, position = [], 0
        for found in _INPUT.finditer(source):
            parts.append(source[position : found.start()])
            position = found.end()
            name = (found[1] or found[2]).strip()
            inner = include(name) if name not in used and len(used) < MAX_INPUTS else None
            used.add(name)
            if inner is not None and added + len(inner) < MAX_INPUT_CHARS:
                added += len(inner)
                parts.append(_clean(inner, stash) + "\n")
        if not parts:
            break
        source = "".join(parts) + source[position:]
    return source


def _clean(source: str, stash: list[str]) -> str:
    source = source.replace("\x00", "").replace("\r\n", "\n").replace("\r", "\n")
    names = "|".join(re.escape(name) for name in _VERBATIM)
    parts, position = [], 0
    closed_at: dict[str, int] = {}
    for found in re.finditer(
        rf"\\begin\{{({names})\}}(?:\[[^\]\n]{{0,300}}\])?(?:\{{[\w+#-]{{0,20}}\}})?", source
    ):
        closer = f"\\end{{{found[1]}}}"
        if found.start() < position or closed_at.get(closer) == -1:
            continue
        closed_at[closer] = end = source.find(closer, found.end())
        if end < 0:
            continue
        parts.append(_COMMENT.sub(r"\1", source[position : found.start()]))
        parts.append(f"\n\n\x00{len(stash)}\x00\n\n")
        code = source[found.end() : end].strip("\n")
        stash.append(f"```\n{code}\n```")
        position = end + len(closer)
    return "".join(parts) + _COMMENT.sub(r"\1", source[position:])


def braces(text: str) -> dict[int, int]:
    """Where each "{" that is closed is closed; escaped braces are none."""
    matched, opened = {}, []
    for found in re.finditer(r"\\.|[{}]", text, re.S):
        if found[0] == "{":
            opened.append(found.start())
        elif found[0] == "}" and opened:
            matched[opened.pop()] = found.start()
    return matched


def expand(source: str) -> str:
    """The source without its simple macro definitions and with their uses expanded, in bounded size."""
    matched = braces(source)
    macros: dict[str, tuple[int, str | None, str]] = {}
    parts, position = [], 0
    for found in _DEFINED.finditer(source):
        end = matched.get(found.end())
        if end is None or found.start() < position:
            continue
        body = source[found.end() + 1 : end]
        if found[6]:
            macros[found[6]] = (0, None, f"\\operatorname{{{body}}}")
        elif found[4]:
            macros[found[4]] = (len(found[5]) // 2, None, body)
        else:
            macros[found[1]] = (int(found[2] or 0), found[3], body)
        parts.append(source[position : found.start()])
        position = end + 1
    source = "".join(parts) + source[position:]
    macros = {name: macro for name, macro in macros.items() if f"\\{name}" not in macro[2]}
    if not macros:
        return source
    limit = len(source) + MAX_ADDED
    for _ in range(MAX_ROUNDS):
        expanded = _expand_once(source, macros, limit)
        if expanded is None or expanded == source:
            break
        source = expanded
    return source


def _expand_once(
    source: str, macros: dict[str, tuple[int, str | None, str]], limit: int
) -> str | None:
    matched = braces(source)
    parts, position, size = [], 0, 0
    for found in _USE.finditer(source):
        if found.start() < position or found[1] not in macros:
            continue
        count, default, body = macros[found[1]]
        arguments, end = [], found.end()
        if default is not None:
            option = OPTION.match(source, end)
            arguments.append(option[0].strip()[1:-1] if option else default)
            end = option.end() if option else end
        while len(arguments) < count:
            start = _BLANKS.match(source, end)
            brace = start.end() if start else end
            if brace in matched:
                arguments.append(source[brace + 1 : matched[brace]])
                end = matched[brace] + 1
            else:
                arguments.append(source[brace : brace + 1])
                end = brace + 1
        text = re.sub(
            r"#(\d)",
            lambda m, a=arguments: a[int(m[1]) - 1] if 0 < int(m[1]) <= len(a) else "",
            body,
        )
        if not count and text[-1:].isalpha() and source[end : end + 1].isalpha():
            text += " "
        size += len(text)
        if size + len(source) > limit:
            return None
        parts += [source[position : found.start()], text]
        position = end
    return "".join(parts) + source[position:]
