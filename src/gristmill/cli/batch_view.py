"""A batch under way: a bar with tokens a second and the time left, and a line when all is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gristmill.cli.asking import draft_note
from gristmill.cli.batch import Line, answered
from gristmill.cli.console import counted, err, out

if TYPE_CHECKING:
    from gristmill.engine import Engine


def watched(engine: Engine, lines: list[Line]) -> Iterator[Line]:
    """The answered lines in order. The bar is left out where the answers themselves show on the terminal."""
    begun = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        redirect_stdout=False,  # the answers go where standard output goes
        disable=out.is_terminal or not err.is_terminal,
    )
    task = bar.add_task("answers", total=len(lines), speed="")
    generated = 0

    def progress(ended: int, tokens: int) -> None:
        nonlocal generated
        generated = tokens
        speed = f"{tokens / max(1e-9, time.monotonic() - begun):,.0f} tokens/s"
        bar.update(task, completed=ended, speed=speed)

    with bar:
        yield from answered(engine, lines, progress)
    seconds = time.monotonic() - begun
    bad = sum(line.error is not None for line in lines)
    were = "was" if bad == 1 else "were"
    wrong = f", {bad:,} of {counted(len(lines), 'line')} {were} bad" if bad else ""
    err.print(
        f"{counted(len(lines) - bad, 'answer')}, {counted(generated, 'token')} in {seconds:.1f} s "
        f"({generated / max(seconds, 1e-9):,.0f} tokens/s){wrong}{draft_note(engine)}",
        style="dim",
        soft_wrap=True,
    )
