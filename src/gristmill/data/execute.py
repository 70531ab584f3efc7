"""Where units are worked on: in this process, in a pool of processes, or on Ray; the parts are the same."""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from gristmill.data.stage import Stage
from gristmill.data.units import Part, Unit, make_part
from gristmill.errors import WorkError, missing_extra

# Makes the parts of units, in their order.
Execute = Callable[[Sequence[Unit]], Iterator[Part]]


@contextmanager
def executor(kind: str, workers: int, stage: Stage, directory: Path) -> Iterator[Execute]:
    """`kind`: "processes" (one worker: this process) or "ray"."""
    if kind == "ray":
        yield lambda units: _on_ray(units, stage, directory, workers)
    elif workers == 1:
        yield lambda units: (make_part(unit, stage, directory) for unit in units)
    else:
        try:
            with process_pool(workers) as pool:
                yield lambda units: _in_pool(pool, units, stage, directory, workers)
        except BrokenProcessPool as error:
            raise WorkError(
                f"a reading process ended unexpectedly ({error}). Out of memory is the usual cause: try "
                "data.workers=1. In a script of your own, call this under `if __name__ == '__main__':`."
            ) from None


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Processes are spawned: a fork of a process that runs threads (torch, pyarrow) may lock up."""
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_end_with_parent
    )


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_pool(
    pool: ProcessPoolExecutor, units: Sequence[Unit], stage: Stage, directory: Path, workers: int
) -> Iterator[Part]:
    running: deque[Future[Part]] = deque()
    waiting = iter(units)
    while True:
        while len(running) <= 2 * workers and (unit := next(waiting, None)) is not None:
            running.append(pool.submit(make_part, unit, stage, directory))
        if not running:
            return
        yield running.popleft().result()


def _on_ray(units: Sequence[Unit], stage: Stage, directory: Path, workers: int) -> Iterator[Part]:
    """Each unit is a row of a Ray dataset; its part is written where all nodes see `directory`."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing_extra("ray", "ray") from None
    if not ray.is_initialized():
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    rows = [{"number": number, "unit": pickle.dumps(unit)} for number, unit in enumerate(units)]

    def make(row: dict[str, Any]) -> dict[str, Any]:
        part = make_part(pickle.loads(row["unit"]), stage, directory)
        return {"number": row["number"], "part": pickle.dumps(part)}

    made = ray.data.from_items(rows, override_num_blocks=max(len(rows), 1)).map(make)
    ordered = sorted(made.take_all(), key=lambda row: row["number"])
    yield from (pickle.loads(row["part"]) for row in ordered)
