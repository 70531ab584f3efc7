"""What a person sees while the line runs: a live line a stage, or plain lines for a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from gristmill.recipe.headline import amount, duration, headline

_SECONDS_BETWEEN_LINES = 10.0


class View:
    """Told what the runner does. The base shows nothing."""

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, stages: Mapping[str, str]) -> None:
        """stages: every stage that will be looked at, in order, and what it does."""

    def skipped(self, stage: str, manifest: Mapping[str, Any]) -> None:
        """A stage is unchanged."""

    def started(self, stage: str, why: str) -> None:
        """A stage starts to run."""

    def progress(
        self, stage: str, done: float, total: float, unit: str, values: Mapping[str, Any]
    ) -> None:
        """A stage tells how far it is."""

    def finished(self, stage: str, manifest: Mapping[str, Any]) -> None:
        """A stage is done."""


Quiet = View


class Plain(View):
    """Lines for a log: a start, a sign of life every ten seconds, an end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stages: dict[str, str] = {}
        self._said = 0.0

    def _say(self, stage: str, text: str) -> None:
        number = list(self._stages).index(stage) + 1
        self._console.print(
            f"[{number}/{len(self._stages)}] {stage}: {text}",
            markup=False,
            soft_wrap=True,
        )

    def begin(self, stages: Mapping[str, str]) -> None:
        self._stages = dict(stages)

    def skipped(self, stage: str, manifest: Mapping[str, Any]) -> None:
        self._say(stage, "unchanged")

    def started(self, stage: str, why: str) -> None:
        self._said = time.monotonic()
        self._say(stage, f"{self._stages[stage]} ({why})")

    def progress(
        self, stage: str, done: float, total: float, unit: str, values: Mapping[str, Any]
    ) -> None:
        if time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            share = f"{done / total:.0%}" if total else ""
            self._say(stage, "  ".join(filter(None, [share, describe(done, total, unit, values)])))

    def finished(self, stage: str, manifest: Mapping[str, Any]) -> None:
        said = headline(stage, manifest["metrics"])
        self._say(stage, f"done in {duration(manifest['seconds'])}" + (f", {said}" if said else ""))


class Live(View):
    """One line a stage: mark, name, bar, how long, and what the stage says about itself."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            _Mark(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12, complete_style="cyan", finished_style="green"),
            _Time(),
            _Note(),
            console=console,
            refresh_per_second=8,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Live:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._bars.tasks:  # a failed or interrupted stage keeps no spinner
            if task.fields["state"] == "running":
                self._bars.update(task.id, state="stopped")
        self._bars.stop()

    def begin(self, stages: Mapping[str, str]) -> None:
        for stage, does in stages.items():
            self._tasks[stage] = self._bars.add_task(
                stage, total=1, start=False, state="waiting", note=does
            )

    def skipped(self, stage: str, manifest: Mapping[str, Any]) -> None:
        said = headline(stage, manifest["metrics"])
        note = f"unchanged{': ' if said else ''}{said}"
        self._update(stage, state="skipped", note=note, completed=1)

    def started(self, stage: str, why: str) -> None:
        self._bars.start_task(self._tasks[stage])
        self._update(stage, state="running", total=None)

    def progress(
        self, stage: str, done: float, total: float, unit: str, values: Mapping[str, Any]
    ) -> None:
        note = describe(done, total, unit, values)
        self._update(stage, completed=done, total=total or None, note=note)

    def finished(self, stage: str, manifest: Mapping[str, Any]) -> None:
        self._update(
            stage,
            state="done",
            total=1,
            completed=1,
            note=headline(stage, manifest["metrics"]) or "done",
            seconds=manifest["seconds"],
        )
        self._bars.stop_task(self._tasks[stage])

    def _update(self, stage: str, **fields: Any) -> None:
        self._bars.update(self._tasks[stage], **fields)


class _Mark(ProgressColumn):
    _MARKS = {  # noqa: RUF012
        "waiting": ("·", "dim"),
        "running": ("▸", "cyan"),
        "done": ("✓", "green"),
        "skipped": ("✓", "dim"),
        "stopped": ("✗", "red"),
    }

    def render(self, task: Task) -> Text:
        mark, style = self._MARKS[task.fields["state"]]
        return Text(mark, style=style)


class _Time(ProgressColumn):
    """How long it took, or has taken + will still take."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        state = task.fields["state"]
        if state == "done":
            return Text(duration(task.fields["seconds"]), style="green")
        if state in ("running", "stopped"):
            text = duration(task.elapsed or 0)
            left = task.time_remaining
            if state == "running" and left is not None:
                text += f" + {duration(left)}"
            return Text(text, style="cyan", no_wrap=True)
        return Text("")


class _Note(ProgressColumn):
    def render(self, task: Task) -> Text:
        dim = task.fields["state"] in ("waiting", "skipped")
        return Text(
            task.fields["note"], style="dim" if dim else "", overflow="ellipsis", no_wrap=True
        )


def describe(done: float, total: float, unit: str, values: Mapping[str, Any]) -> str:
    """'300/1,000 steps  loss 2.31  5,120 tokens/s'."""
    parts = []
    if unit in ("bytes", "B"):
        parts.append(f"{amount(done, 'bytes')} of {amount(total, 'bytes')}")
    elif unit:
        parts.append(f"{done:,.0f}/{total:,.0f} {unit}")
    for name, value in values.items():
        words = name.replace("_per_s", "/s").replace("_", " ")
        if isinstance(value, float):
            value = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        elif isinstance(value, int):
            value = f"{value:,}"
        parts.append(f"{value} {words}" if words.endswith("/s") else f"{words} {value}")
    return "  ".join(parts)
