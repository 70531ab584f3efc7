"""LaTeX source to text with markdown headings: one pass over commands, braces matched beforehand.

Formulas stay TeX ($…$, $$…$$) with the author's own macros expanded, because nobody else knows those.
Dropped: comments, figures, tables, bibliographies, labels, citations. Kept: theorems and proofs, footnotes
in parentheses, code. Every step is linear in the size of the source; nothing recurses.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from gristmill.data.sources.latex_macros import OPTION, assemble, braces, expand

_COMMAND = re.compile(r"\\([A-Za-z@]+)\*?|\\([^A-Za-z])|([{}~&])|(\$\$?)|(---?|``|'')")
_MATH = frozenset(
    """equation align gather multline eqnarray displaymath math flalign alignat dmath IEEEeqnarray
    split""".split()
)
_DROPPED_ENVIRONMENTS = frozenset(
    """figure table tabular tabularx longtable wrapfigure wraptable sidewaystable sidewaysfigure
    tikzpicture picture thebibliography filecontents comment subfigure pspicture CCSXML keywords
    IEEEkeywords acks""".split()
)
_THEOREMS = {
    "thm": "Theorem",
    "lem": "Lemma",
    "prop": "Proposition",
    "cor": "Corollary",
    "defn": "Definition",
}
_THEOREMS |= {
    "rem": "Remark",
    "ex": "Example",
    "conj": "Conjecture",
    "obs": "Observation",
    "defi": "Definition",
}
_THEOREMS |= {
    word.lower(): word
    for word in """Theorem Lemma Proposition Corollary Definition Remark Example Conjecture Claim Fact
    Assumption Observation Proof Problem Question Exercise Axiom Notation""".split()
}
_HEADINGS = {
    "part": "#",
    "chapter": "##",
    "section": "##",
    "subsection": "###",
    "subsubsection": "####",
}
_HEADINGS |= {"paragraph": "#####", "subparagraph": "######"}
# Commands with so many arguments that say nothing to a reader.
_SILENT = dict.fromkeys(
    """label ref eqref cref Cref autoref pageref cite citep citet citealp citeauthor citeyear
    nocite citealt parencite textcite vspace hspace bibliography bibliographystyle
    includegraphics usepackage pagestyle thispagestyle index date thanks affil affiliation
    address email institute title author keywords vskip hskip input include setlength color
    documentclass newtheorem theoremstyle setcounter caption maketitle hypersetup graphicspath
    phantom vphantom hphantom pagenumbering addcontentsline markboth tableofcontents""".split(),
    1,
)
_SILENT |= {
    "setlength": 2,
    "setcounter": 2,
    "newtheorem": 2,
    "addcontentsline": 3,
    "markboth": 2,
    "maketitle": 0,
}
_SILENT |= {
    "tableofcontents": 0,
    "addtocounter": 2,
    "rule": 2,
    "newcommand": 2,
    "renewcommand": 2,
    "textcolor": 1,
}
_SILENT |= {
    "href": 1,
    "hyperref": 0,
    "resizebox": 2,
    "scalebox": 1,
    "fontsize": 2,
    "vskip": 0,
    "hskip": 0,
}
_WORDS = {
    "ldots": "…",
    "dots": "…",
    "textendash": "–",
    "textemdash": "—",
    "ss": "ß",
    "o": "ø",
    "O": "Ø",
    "l": "ł",
}
_WORDS |= {
    "L": "Ł",
    "ae": "æ",
    "AE": "Æ",
    "oe": "œ",
    "OE": "Œ",
    "aa": "å",
    "AA": "Å",
    "i": "ı",
    "j": "ȷ",
}
_WORDS |= {
    "S": "§",
    "P": "¶",
    "copyright": "©",
    "pounds": "£",
    "euro": "€",
    "textbackslash": "\\",
    "quad": " ",
}
_WORDS |= {
    "qquad": " ",
    "LaTeX": "LaTeX",
    "TeX": "TeX",
    "BibTeX": "BibTeX",
    "textasciitilde": "~",
    "par": "\n\n",
}
_WORDS |= {
    "newline": "\n",
    "linebreak": "\n",
    "and": ", ",
    "textquotedblleft": "“",
    "textquotedblright": "”",
}
_ACCENTS = {
    "`": "\u0300",
    "'": "\u0301",
    "^": "\u0302",
    "~": "\u0303",
    '"': "\u0308",
    "=": "\u0304",
    ".": "\u0307",
}
_ACCENTS |= {
    "c": "\u0327",
    "v": "\u030c",
    "u": "\u0306",
    "H": "\u030b",
    "k": "\u0328",
    "r": "\u030a",
    "d": "\u0323",
}
_ACCENTS |= {"b": "\u0331"}
_ACCENTED = re.compile(
    r"\s{0,3}(?:\{\s{0,3}(?:\\([ij])\b|([^\W\d_]))\s{0,3}\}|\\([ij])(?![A-Za-z])|([^\W\d_]))"
)
_AFTER_WORD = re.compile(r"[ \t]?(?:\{\})?")
_BLANKS = re.compile(r"\s{0,9}")
_ENVIRONMENT = re.compile(r"\s{0,3}\{([^{}]{1,60})\}")
_STASH = re.compile("\x00(\\d+)\x00")


@dataclass(frozen=True, slots=True)
class Paper:
    """problem: "" or why there is no text ("not_latex")."""

    text: str = ""
    title: str = ""
    authors: str = ""
    problem: str = ""


def latex_text(source: str, include: Callable[[str], str | None] = lambda name: None) -> Paper:
    """The text of a main file. `include` gives the source behind a name in \\input, or None."""
    stash: list[str] = []
    source = assemble(source, include, stash)
    begin = re.search(r"\\begin\s{0,9}\{document\}", source)
    if not begin and not re.search(r"\\documentclass|\\documentstyle", source):
        return Paper(problem="not_latex")
    source = expand(source)
    begin = re.search(r"\\begin\s{0,9}\{document\}", source)
    end = re.search(r"\\end\s{0,9}\{document\}", source)
    body = source[begin.end() if begin else 0 : end.start() if end else len(source)]
    title, authors = _field(source, "title", stash), _field(source, "author", stash)
    abstract = _field(source[: begin.start()] if begin else "", "abstract", stash)
    text = _render(body, stash)
    if abstract:
        text = f"## Abstract\n\n{abstract}\n\n{text}"
    return Paper(text.strip(), " ".join(title.split()), " ".join(authors.split())[:2000])


def _field(source: str, command: str, stash: list[str]) -> str:
    """The rendered argument of \\title{…} and the like, "" when there is none."""
    found = re.search(rf"\\{command}\*?\s{{0,9}}(?:\[[^\[\]]{{0,300}}\])?\s{{0,9}}(?=\{{)", source)
    end = braces(source[found.end() : found.end() + 20_000]).get(0) if found else None
    return _render(source[found.end() + 1 : found.end() + end], stash) if found and end else ""


def _render(text: str, stash: list[str]) -> str:
    text = _STASH.sub(lambda found: stash[int(found[1])], _Renderer(text, stash).run())
    return re.sub(r"\n{3,}", "\n\n", text).strip()


class _Renderer:
    def __init__(self, text: str, stash: list[str]) -> None:
        self.text, self.stash = text, stash
        self.matched = braces(text)
        self.after: dict[int, str] = {}  # what to write at a closing brace
        self.out: list[str] = []
        self.never: set[str] = set()
        self.lists: list[int | None] = []  # items so far of each open enumerate; None for itemize

    def run(self) -> str:
        position = 0
        while found := _COMMAND.search(self.text, position):
            self.out.append(self.text[position : found.start()])
            position = self._step(found)
        self.out.append(self.text[position:])
        return _tidy("".join(self.out))

    def _find(self, closer: str, start: int) -> int:
        if closer in self.never:
            return -1
        end = self.text.find(closer, start)
        if end < 0:
            self.never.add(closer)
        return end

    def _keep(self, text: str) -> None:
        self.out.append(f"\x00{len(self.stash)}\x00")
        self.stash.append(text)

    def _step(self, found: re.Match[str]) -> int:
        name, sign, brace, dollar, dashes = found.groups()
        if name:
            return self._command(name, found.end())
        if dollar:
            return self._math(found.end(), dollar, "$" if dollar == "$" else "$$")
        if sign in ("(", "["):
            return self._math(
                found.end(), "\\)" if sign == "(" else "\\]", "$" if sign == "(" else "$$"
            )
        if sign in _ACCENTS:
            return self._accent(sign, found.end())
        if brace == "}":
            self.out.append(self.after.get(found.start(), ""))
        elif brace in ("~", "&"):
            self.out.append(" ")
        elif sign == "\\":
            self.out.append("\n")
            option = OPTION.match(self.text, found.end())
            return option.end() if option else found.end()
        elif sign:
            self.out.append(sign if sign in "%$&#_{}" else " " if sign in ", ;:\n" else "")
        elif dashes:
            self.out.append({"--": "–", "---": "—", "``": "“", "''": "”"}[dashes])
        return found.end()

    def _math(self, start: int, closer: str, mark: str) -> int:
        end = self._find(closer, start)
        if end < 0:
            self.out.append(mark)
            return start
        tex = re.sub(r"\\label\s{0,9}\{[^{}]{0,200}\}", "", self.text[start:end]).strip()
        if tex:
            self._keep(f"{mark}{tex}{mark}")
        return end + len(closer)

    def _accent(self, sign: str, start: int) -> int:
        letter = _ACCENTED.match(self.text, start)
        if not letter:
            return start
        base = letter[1] or letter[2] or letter[3] or letter[4]
        self.out.append(unicodedata.normalize("NFC", base + _ACCENTS[sign]))
        return letter.end()

    def _arguments(self, start: int, count: int) -> int:
        """Where `count` brace arguments (and options before them) end."""
        while option := OPTION.match(self.text, start):
            start = option.end()
        for _ in range(count):
            brace = _BLANKS.match(self.text, start)
            place = brace.end() if brace else start
            if place not in self.matched:
                break
            start = self.matched[place] + 1
        return start

    def _command(self, name: str, start: int) -> int:
        if name in ("begin", "end"):
            return self._environment(name, start)
        if name in _WORDS:
            self.out.append(_WORDS[name])
            follows = _AFTER_WORD.match(self.text, start)
            return follows.end() if follows else start
        if name in _ACCENTS and _ACCENTED.match(self.text, start):
            return self._accent(name, start)
        if name == "item":
            return self._item(start)
        if name == "verb":
            mark = self.text[start : start + 1]
            end = self.text.find(mark, start + 1, start + 500) if mark else -1
            if end > 0:
                self._keep(f"`{self.text[start + 1 : end]}`")
                return end + 1
            return start
        if name in _SILENT:
            return self._arguments(start, _SILENT[name])
        option = OPTION.match(self.text, start)
        place = option.end() if option else start
        blank = _BLANKS.match(self.text, place)
        place = blank.end() if blank else place
        if place not in self.matched:
            return start
        if name in _HEADINGS:
            self.out.append(f"\n\n{_HEADINGS[name]} ")
            self.after[self.matched[place]] = "\n\n"
            return place + 1
        if name == "footnote":
            self.out.append(" (")
            self.after[self.matched[place]] = ")"
        return place + 1  # whatever the command does to its argument, the argument is text

    def _item(self, start: int) -> int:
        option = OPTION.match(self.text, start)
        indent = "  " * min(max(0, len(self.lists) - 1), 10)
        count = self.lists[-1] if self.lists else None
        if count is not None:
            self.lists[-1] = count + 1
        sign = "- " if count is None else f"{count + 1}. "
        self.out.append(f"\n{indent}{sign}")
        if option:
            self.out.append(_render(option[0].strip()[1:-1], self.stash) + " ")
            return option.end()
        return start

    def _environment(self, verb: str, start: int) -> int:
        brace = _ENVIRONMENT.match(self.text, start)
        if not brace:
            return start
        name = brace[1].strip()
        plain, after = name.rstrip("*"), brace.end()
        if verb == "end":
            if plain in ("itemize", "enumerate", "description") and self.lists:
                self.lists.pop()
            self.out.append("\n\n")
            return after
        closer = f"\\end{{{name}}}"
        if plain in _MATH:
            end = self._find(closer, after)
            if end < 0:
                return after
            tex = re.sub(r"\\label\s{0,9}\{[^{}]{0,200}\}", "", self.text[after:end]).strip()
            inside = (
                tex
                if plain in ("equation", "displaymath", "math")
                else f"\\begin{{{name}}}\n{tex}\n{closer}"
            )
            self._keep(f"\n\n$$\n{inside}\n$$\n\n")
            return end + len(closer)
        if plain in _DROPPED_ENVIRONMENTS:
            end = self._find(closer, after)
            return end + len(closer) if end >= 0 else after
        if plain in ("itemize", "enumerate", "description"):
            self.lists.append(0 if plain == "enumerate" else None)
            return self._arguments(after, 0)
        option = OPTION.match(self.text, after)
        if plain == "abstract":
            self.out.append("\n\n## Abstract\n\n")
        elif plain.lower() in _THEOREMS:
            of = f" ({_render(option[0].strip()[1:-1], self.stash)})" if option else ""
            self.out.append(f"\n\n**{_THEOREMS[plain.lower()]}{of}.** ")
        else:
            self.out.append("\n\n")
        return option.end() if option else after


def _tidy(text: str) -> str:
    text = re.sub(r"[ \t\xa0]+", " ", text)
    text = re.sub(r" ([.,;:!?)])", r"\1", text)
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in block.split("\n")]
        lines = [line if re.match(r" *(?:- |\d+\. )", line) else line.strip() for line in lines]
        lines = [line for line in lines if line.strip()]
        if lines and lines[0].strip() not in ("-", "[]", "()"):
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
