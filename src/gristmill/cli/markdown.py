"""An answer on a terminal as it comes, with its markdown rendered.

What is certain is printed for good, block by block; only the block under way is drawn again with every piece.
So an answer may be longer than the window.
"""

from __future__ import annotations

import re
import time

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

from gristmill.cli.terminal import harmless

_REDRAW_SECONDS = 0.06
_FENCE = re.compile(r" {0,3}(```|~~~)")
# A line after an empty one that begins like this may still belong to the list before it.
_GOES_ON = re.compile(r"\s|[-*+] |\d+[.)] ")


class MarkdownStream:
    """Use as a context; `push` what comes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # of the block under way
        self._printed = False
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> MarkdownStream:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._text.strip():
            self._print(self._text)

    def push(self, piece: str) -> None:
        self._text += harmless(piece)
        whole, self._text = _split(self._text)
        if whole.strip():
            self._live.update("", refresh=True)
            self._print(whole)
        if time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self._live.update(_Tail(self._text), refresh=True)
            self._drawn = time.monotonic()

    def _print(self, text: str) -> None:
        if self._printed:
            self._console.print()
        self._printed = True
        self._console.print(Markdown(text))


class _Tail:
    """The last lines of a text, as many as the window has."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(self._text), options, pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


def _split(text: str) -> tuple[str, str]:
    """What can be rendered for good, and the block that may go on."""
    lines = text.splitlines(keepends=True)
    fence, cut = "", 0
    for i, line in enumerate(lines):
        mark = _FENCE.match(line)
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
        after = i + 1 < len(lines) and lines[i + 1].strip()
        if not fence and not line.strip() and after and not _GOES_ON.match(lines[i + 1]):
            cut = i + 1
    return "".join(lines[:cut]), "".join(lines[cut:])
