"""Contestants in processes of their own, who take turns; one who waits is stopped and costs the others nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from benchmarks.engine.protocol import Requests

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    seconds: float
    tokens: list[list[int]] | None


class Contestant:
    """`python -m benchmarks.engine.MODULE ARGUMENTS`, loaded and waiting. `about` is what it says of itself."""

    def __init__(
        self,
        module: str,
        *arguments: str | Path,
        python: str | Path = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._module = module
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - the process writes to it to the end
        start = perf_counter()
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.engine.{module}", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # its children are stopped with it
            env={**os.environ, **(environment or {})},
        )
        self.about: dict[str, Any] = self._answer()["about"]
        self.about["load_seconds"] = perf_counter() - start
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        """Closing its input ends it; one who does not end is killed, with its children."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._process.stdin.close()
            self._process.wait(timeout=30)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def __call__(self, requests: Requests) -> Answer:
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and _answer says how
                self._process.stdin.write(json.dumps({"requests": requests}) + "\n")
                self._process.stdin.flush()
            return Answer(**self._answer())
        finally:
            self._signal(signal.SIGSTOP)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            tail = self._log.read()[-3000:].decode(errors="replace")
            raise RuntimeError(
                f"{self._module} ended ({self._process.wait()}) without an answer:\n{tail}"
            )
        return json.loads(line)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self._process.pid, number)


def interleaved(
    sides: Mapping[str, Callable[[], T]], rounds: int, warm_up: bool = True
) -> dict[str, list[T]]:
    """What each side returned in every round; with `warm_up` after one more round that does not count."""
    results: dict[str, list[T]] = {name: [] for name in sides}
    for round_ in range(-1 if warm_up else 0, rounds):
        for name, run in sides.items():
            result = run()
            if round_ >= 0:
                results[name].append(result)
    return results


def agreement(ours: Answer, theirs: Answer) -> float | None:
    """The share of tokens that are equal before the two first differ: proof that they did the same work."""
    if ours.tokens is None or theirs.tokens is None:
        return None
    same = total = 0
    for a, b in zip(ours.tokens, theirs.tokens, strict=True):
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
        total += len(a)
    return same / total
