"""How far a piece of work is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from typing import Any

from gristmill.cli.console import err


class Bar:
    """A bar with what is done, how fast and how long it will take, on a terminal; lines now and then in a log."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=err,
            transient=True,
        )
        self._live = err.is_terminal
        self._name, self._task, self._begun, self._said = "", None, 0.0, 0.0

    def __enter__(self) -> Bar:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def begin(self, name: str) -> None:
        self._name, self._begun = name, time.monotonic()
        self._said = self._begun
        self._task = self._bars.add_task(name, total=None, note="")

    def progress(self, done: float, total: float, unit: str = "", **values: Any) -> None:
        from gristmill.recipe.headline import duration
        from gristmill.recipe.view import describe

        note = describe(done, total, unit, values)
        assert self._task is not None
        self._bars.update(self._task, completed=done, total=total or None, note=note)
        now = time.monotonic()
        if not self._live and now - self._said >= 10:
            self._said = now
            left = (now - self._begun) * (total - done) / done if done else None
            about = f"  about {duration(left)} left" if left is not None else ""
            err.print(f"{self._name}: {note}{about}", markup=False, soft_wrap=True)
