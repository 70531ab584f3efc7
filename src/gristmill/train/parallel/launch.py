"""The processes of a layout: joined where torchrun or SLURM started them, started here where nobody did.

Here a supervisor owns them: when one dies, all are stopped and started again on a fresh port, and go on from the
newest sound checkpoint. (torchrun's own restart hands out the address of the dead attempt: pytorch#135712.)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import BaseModel

from gristmill.errors import RequestError, WorkError
from gristmill.files import read_json, write_json
from gristmill.stage import Progress
from gristmill.train.parallel import layout as layouts
from gristmill.train.parallel.layout import Layout, Mesh

RESTARTS = 3  # of all processes, without a step that was not made before
_TIMEOUT = timedelta(minutes=10)  # of one exchange between processes
REFUSED, FAILED = 2, 1  # exit codes of a rank that said why it ends; others are deaths

T = TypeVar("T")


def joined() -> bool:
    """Whether this process is one of several (torchrun, SLURM, or the supervisor here)."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or "1") > 1


@contextmanager
def processes(layout: Layout, timeout: timedelta = _TIMEOUT) -> Iterator[Mesh | None]:
    """The mesh of the processes that this one has joined, for as long as the block runs; None: it is alone."""
    if not joined():
        yield None
        return
    for name, slurm in {
        "RANK": "SLURM_PROCID",
        "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
        "LOCAL_RANK": "SLURM_LOCALID",
    }.items():
        if name not in os.environ and slurm in os.environ:
            os.environ[name] = os.environ[slurm]
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=timeout)
    try:
        yield layouts.build(layout, kind)
    finally:
        dist.destroy_process_group()


def agreed(mesh: Mesh | None, function: Callable[[], T]) -> T:
    """What `function` returns on the first process, on all of them; it is called there alone."""
    if mesh is None:
        return function()
    told: list[Any] = [function() if mesh.first else None]
    dist.broadcast_object_list(told, 0)
    return told[0]


def run(
    config: BaseModel,
    inputs: dict[str, Path],
    out_dir: Path,
    progress: Progress,
    log_every: int = 10,
) -> dict[str, Any]:
    """Pretrain on this machine with as many processes as `config.layout` has; returns the stage's metrics.

    Raises what a process says is wrong; WorkError when they died again and again.
    """
    world: int = config.layout.world  # type: ignore[attr-defined]
    out_dir.mkdir(parents=True, exist_ok=True)
    job, result = out_dir / "job.json", out_dir / "job_result.json"
    write_json(
        job,
        {
            "config": config.model_dump(mode="json"),
            "inputs": {name: str(path) for name, path in inputs.items()},
            "out_dir": str(out_dir),
            "log_every": log_every,
        },
    )
    deaths, best = 0, 0.0
    while True:
        result.unlink(missing_ok=True)
        attempt = _Attempt(job, world, progress)
        codes = attempt.wait()
        if attempt.failed is not None:
            raise attempt.failed
        if not any(codes):
            return read_json(result)
        if attempt.complaint:
            kind, message = attempt.complaint
            raise {REFUSED: RequestError, FAILED: WorkError}[kind](message)
        deaths = 1 if attempt.reached > best else deaths + 1
        best = max(best, attempt.reached)
        # One that was killed comes first: the others complain that it left them.
        rank, code = min(
            ((rank, code) for rank, code in enumerate(codes) if code), key=lambda it: it[1]
        )
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        note = {"rank": rank, "code": code, "time": time.time(), "last": attempt.last_words}
        with open(out_dir / "restarts.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")
        if deaths <= RESTARTS:
            warnings.warn(
                f"process {rank} of {world} {how}; all start again from the newest checkpoint",
                stacklevel=2,
            )
        else:
            raise WorkError(
                f"process {rank} of {world} {how} {deaths} times without a new step in between; "
                f"its last words: {attempt.last_words[-400:] or 'none'}"
            )


class _Attempt:
    """All processes, once."""

    def __init__(self, job: Path, world: int, progress: Progress) -> None:
        self.progress = progress
        self.complaint: tuple[int, str] | None = None
        self.reached = 0.0  # the furthest step that was reported
        self.failed: BaseException | None = None  # what the listener to progress raised
        self.last_words = ""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        threads = max(1, (os.cpu_count() or 1) // world)
        common = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world),
            "OMP_NUM_THREADS": str(threads),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        self.children = [
            subprocess.Popen(
                [sys.executable, "-m", "gristmill.train.parallel.rank", str(job)],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,  # closes when this process dies, and then they end too
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        self._readers = [
            Thread(target=reader, args=(child,), daemon=True)
            for child in self.children
            for reader in (self._listen, self._hear)
        ]
        for thread in self._readers:
            thread.start()

    def _listen(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if not isinstance(told, dict):
                continue
            if "error" in told:
                self.complaint = self.complaint or (told["code"], told["error"])
            else:
                self.reached = max(self.reached, told["done"])
                try:
                    self.progress(told["done"], told["total"], told["unit"], **told["values"])
                except BaseException as error:
                    self.failed = self.failed or error

    def _hear(self, child: subprocess.Popen[str]) -> None:
        assert child.stderr is not None
        for line in child.stderr:
            self.last_words = (self.last_words + line)[-4000:]

    def wait(self) -> list[int]:
        """Exit codes; when one process ends badly the others are killed, for they would wait for it."""
        try:
            while any(child.poll() is None for child in self.children):
                if self.failed or any(child.returncode for child in self.children):
                    break
                time.sleep(0.05)
        finally:
            codes = [child.poll() for child in self.children]
            for child in self.children:
                child.kill()
            for child in self.children:
                child.wait()
            for thread in self._readers:
                thread.join(timeout=5)
        return [code or 0 for code in codes]
