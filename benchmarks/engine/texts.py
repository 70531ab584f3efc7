"""Prompts with the answers that a good model would give, made of texts that every Python brings along.

A speculation that looks ahead in the prompt gains by what an answer repeats of it, so this must be real: an edit
keeps most lines, an extract quotes, code in series repeats its frame, and an aphorism repeats nothing.
"""

from __future__ import annotations

import codecs
import contextlib
import heapq
import inspect
import io
import re
import stat
import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    kind: str
    prompt: str
    answer: str


def tasks() -> list[Task]:
    return [edit(), extract(), series(), aphorisms()]


def edit() -> Task:
    source = inspect.getsource(textwrap.TextWrapper._split_chunks)
    source += "\n" + inspect.getsource(textwrap.TextWrapper._handle_long_word)
    renamed = re.sub(r"\breversed_chunks\b", "pending", re.sub(r"\bcur_line\b", "line", source))
    head = renamed.index("def _handle_long_word")
    question = (
        "\nRename reversed_chunks to pending and cur_line to line in the second method:\n\n    "
    )
    return Task("edit", source + question, renamed[head:])


def extract() -> Task:
    paragraphs = [" ".join(p.split()) for p in heapq.__about__.split("\n\n") if "." in p]
    passage = "\n".join(p for p in paragraphs if p[0].isalpha())
    sentences = [p.split(". ")[0].rstrip(".") + "." for p in paragraphs if p[0].isalpha()]
    return Task("summarise", passage + "\n\nThe main points:\n- ", "\n- ".join(sentences))


def series() -> Task:
    source = inspect.getsource(stat)
    start, cut = source.index("def S_ISDIR"), source.index("def S_ISFIFO")
    end = source.index("# Names for permission bits")
    return Task("code-repeat", source[start:cut], source[cut:end])


def aphorisms() -> Task:
    """The Zen of Python after unrelated code: nothing to look up."""
    with contextlib.redirect_stdout(io.StringIO()):  # importing it prints it
        import this
    zen = codecs.decode(this.s, "rot13")
    prompt = inspect.getsource(heapq.nsmallest) + "\n\n"
    return Task("no help", prompt, zen.split("\n\n", 1)[1])
