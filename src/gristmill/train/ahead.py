"""Batches made one step ahead, by a thread, while the network is busy with the one before."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Ahead:
    """`objective.batch(step, row, rows)` for steps that mostly follow each other. A batch is a function of its step,
    so one that was made and not asked for is nothing lost."""

    def __init__(self, objective: Any, row: int, rows: int) -> None:
        self._make = lambda step: objective.batch(step, row, rows)
        self._maker = ThreadPoolExecutor(1, "gristmill-batches")
        self._next: tuple[int, Future[Any]] | None = None

    def batch(self, step: int, more: bool = True) -> Any:
        """more: whether a step comes after it."""
        waiting, self._next = self._next, None
        ready = waiting is not None and waiting[0] == step
        batch = waiting[1].result() if waiting is not None and ready else self._make(step)
        if more:
            self._next = (step + 1, self._maker.submit(self._make, step + 1))
        return batch

    def close(self) -> None:
        self._maker.shutdown(cancel_futures=True)
