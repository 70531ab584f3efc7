"""A conversation in the terminal: reading questions, showing answers, until it is left."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from gristmill.cli.commands import COMMANDS, Again, Quit, obey
from gristmill.cli.console import err, out
from gristmill.cli.talk import Talk
from gristmill.cli.terminal import write
from gristmill.errors import GristmillError, RequestError, refused_by_system
from gristmill.lm import ContextOverflow

if TYPE_CHECKING:
    from gristmill.retrieval import Answer

HELP = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."
_BLOCK = '"""'


def converse(talk: Talk) -> None:
    _edit_lines()
    while True:
        try:
            line = _read()
        except EOFError:
            out.print()
            return
        except KeyboardInterrupt:
            out.print("\n(Ctrl-D or /quit leaves)", style="dim")
            continue
        try:
            if line.startswith("/"):
                out.print(obey(talk, line.strip()), style="dim", markup=False, soft_wrap=True)
            elif line.strip():
                talk.retries = 0
                answer(talk, line.strip())
        except Again as again:
            _again(talk, again.question)
        except Quit:
            return
        except RequestError as error:
            err.print(f"{error}", style="red", markup=False, soft_wrap=True)
        except OSError as error:  # a file that cannot be written or read
            told = refused_by_system(error)
            err.print(f"{told}", style="red", markup=False, soft_wrap=True)


def answer(talk: Talk, question: str) -> None:
    """Ask and show, until it ends or Ctrl-C."""
    try:
        if out.is_terminal:
            _render(talk, question)
        else:
            for piece in talk.ask(question):
                show(piece)
    except KeyboardInterrupt:
        out.print("\n(stopped)", style="dim")
    except ContextOverflow as error:
        hint = f"{error}. /new starts over, /undo forgets the last question."
        err.print(hint, style="red", markup=False, soft_wrap=True)
    except GristmillError as error:
        err.print(f"{error}", style="red", markup=False, soft_wrap=True)


def show(piece: str | Answer) -> None:
    """Text as it comes; at the end of a looked-up answer, where it is from."""
    if isinstance(piece, str):
        write(piece)
        return
    out.print()
    show_citations(piece)


def show_citations(found: Answer) -> None:
    for passage in found.citations:
        out.print(f"  {passage.cite}  {passage.title}", style="dim", markup=False, soft_wrap=True)


def _render(talk: Talk, question: str) -> None:
    from gristmill.cli.markdown import MarkdownStream

    found = None
    with MarkdownStream(out) as shown:
        for piece in talk.ask(question):
            if isinstance(piece, str):
                shown.push(piece)
            else:
                found = piece
    if found is not None:
        show_citations(found)


def _again(talk: Talk, question: str) -> None:
    if talk.params.temperature == 0:
        hint = "The temperature is 0, so the answer stays the same; /set temperature 0.7 varies it."
        out.print(hint, style="dim")
    answer(talk, question)


def _edit_lines() -> None:
    """Let `input` edit its line, recall earlier ones and complete commands."""
    with suppress(ImportError):
        import readline

        def complete(text: str, state: int) -> str | None:
            found = [name for name in COMMANDS if text and name.startswith(text)]
            return f"{found[state]} " if state < len(found) else None

        readline.set_completer(complete)
        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")


def _read() -> str:
    """A question: a line, lines that end with a backslash and the one after them, or a block."""
    line = input("\n› ")
    if line.startswith(_BLOCK):
        text = line[len(_BLOCK) :]
        while not text.rstrip().endswith(_BLOCK):
            text += "\n" + input("… ")
        return "\n" + text.rstrip()[: -len(_BLOCK)]  # never a command
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input("… ")
    return line
