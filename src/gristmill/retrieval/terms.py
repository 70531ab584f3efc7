"""Text to index terms, for prose and for code names alike, and a question to what it asks for.

A name is indexed whole and in parts: `collections.Counter.most_common` gives the whole dotted name, its
components, and the words inside each (`most`, `common`), so that a question may use any of them. Text
written without spaces (Chinese, Japanese, Thai) is indexed by pairs of characters. Stemming is left to
SQLite's Porter tokenizer, which sees every term of documents and questions alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

_WORD = re.compile(r"\w+(?:\.\w+)*")
_HUMP = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_A-Za-z]+")
# Scripts that put no space between words: Thai, Lao, Myanmar, Khmer, kana, and Han.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+"
)
_BACKTICKED = re.compile(r"(?<!`)`+([^`\n]{1,200})`+")
_QUOTED = re.compile(r"[\"“«]([^\"”»\n]{1,200})[\"”»]")
_WANTS_NAME = re.compile(
    r"\s*(?:which|what|name (?:the|a)|i need (?:this|a|the)|is there an?|find (?:the|a)) "
    r"(?:function|class|method|module)\b(?! `)",
    re.IGNORECASE,
)
_NAME_OR_CALL = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*)(?:\(.*)?")
_CALL = re.compile(r"(?<![\w.])[^\W\d][\w.]*(?=\(\s*[\w, =]*\))")
_IDENTIFIER = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")

# Function words of English, and the words that questions to this assistant are made of. They carry no
# subject, so they neither search nor count as found.
STOP_WORDS = frozenset(
    """a about all am an and any are as at be been being but by can could did do does doing for from get
    give had has have having he her him his how i if in into is it its itself let ll me my of on or our out
    please re s she should show so some such t tell than that the their them then there these they this
    those to up us ve was we were what when where which while who whom whose why will with would you your
    explain describe mean means summarize written say says said question""".split()
)
# Words of the question's frame: they search (with the little weight their frequency leaves them), but a
# passage that shares only these with the question has not answered it.
FRAME_WORDS = frozenset(
    """argument arguments attribute class code example examples find function functions library method
    methods module object package parameter parameters python return returned returning returns snippet
    take takes usage use used uses using work works description document documents name section
    signature sentence called""".split()
)
_QUESTION_CHARS = 4000
_PHRASE_WINDOW = 40
_MAX_PHRASES = 300


@lru_cache(maxsize=200_000)
def _expand(word: str) -> str:
    """The terms of one (possibly dotted) word, space-joined: whole, components, words inside each."""
    found = [word.lower()]
    components = word.split(".")
    if len(components) > 1:
        found += [component.lower() for component in components]
    for component in components:
        inner = [part.lower() for part in _HUMP.findall(component)]
        if len(inner) > 1 or (inner and inner[0] != component.lower()):
            found += inner
    for run in _UNSPACED.findall(word):
        found += [run[i : i + 2] for i in range(len(run) - 1)]
    return " ".join(found)


def index_text(text: str) -> str:
    """`text` as the space-joined terms it is indexed under. Control characters and NUL vanish here."""
    return " ".join(_expand(word) for word in _WORD.findall(text))


@dataclass(frozen=True)
class Question:
    """What a question asks for.

    names: identifiers it points at (backticked, dotted, with an underscore inside, capitalized inside, or
        followed by a call), as spelled, in order, without repeats.
    words: every other searchable word in lower case, in order, without repeats.
    phrases: what may be a heading written out: quoted or backticked texts, then runs of two to eight words that
        hold the whole subject, longest first, in the form that `phrase` gives.
    wants_name: whether it describes something and asks what that is called; names in it are then part of the
        description, not what is looked for.
    last: the last word, in lower case: in `explain with` a bare name, though a function word.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]
    phrases: tuple[str, ...] = ()
    wants_name: bool = False
    last: str = ""

    @property
    def subject(self) -> tuple[str, ...]:
        """The terms that an answer must share: names, and words that are not of the question's frame."""
        words = [word for word in self.words if word not in FRAME_WORDS]
        if not words and not self.names:
            words = list(self.words)
        return (*(name.lower() for name in self.names), *words)


def parse_question(question: str) -> Question:
    """Split a natural question into names and words. Never fails: any text is a question; of a very long one
    the first 4,000 characters count."""
    question = question[:_QUESTION_CHARS].replace("\0", " ")
    names: list[str] = []

    def take(match: re.Match[str]) -> str:
        name = _NAME_OR_CALL.fullmatch(match[1].strip())
        if name:
            names.append(name[1])
        return " " if name else f" {match[1]} "

    rest = _BACKTICKED.sub(take, question)
    calls = set(_CALL.findall(rest))
    words: list[str] = []
    for word in _WORD.findall(rest):
        if word in calls or _looks_like_name(word):
            names.append(word)
        elif word.lower() not in STOP_WORDS:
            words.append(word.lower())
    if not words and not names:
        words = [word.lower() for word in _WORD.findall(rest)]
    found = Question(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(words)))
    spoken = [word.lower() for word in _WORD.findall(question)]
    quoted = [phrase(text) for text in (*_BACKTICKED.findall(question), *_QUOTED.findall(question))]
    phrases = dict.fromkeys(text for text in (*quoted, *_runs(spoken, set(found.subject))) if text)
    return replace(
        found,
        phrases=tuple(phrases)[:_MAX_PHRASES],
        wants_name=bool(_WANTS_NAME.match(question)),
        last=spoken[-1] if spoken else "",
    )


def _runs(spoken: list[str], subject: set[str]) -> list[str]:
    """Runs of two to eight words that hold the whole subject, longest first."""
    spoken = spoken[:_PHRASE_WINDOW]
    return [
        " ".join(spoken[start : start + length])
        for length in range(min(8, len(spoken)), 1, -1)
        for start in range(len(spoken) - length + 1)
        if subject.issubset(spoken[start : start + length])
    ]


def phrase(text: str) -> str:
    """A heading or quoted text as it is compared: its words in lower case, single spaces between."""
    return " ".join(_WORD.findall(text)).lower()


def _looks_like_name(word: str) -> bool:
    """Dotted, with an underscore inside, or a capital after a small letter: `os.walk`, `DataFrame`."""
    if "." in word:
        return all(_IDENTIFIER.fullmatch(part) for part in word.split("."))
    return ("_" in word.strip("_") or word.startswith("__")) or bool(re.search(r"[a-z][A-Z]", word))
