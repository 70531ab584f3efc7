"""One rung of a ladder in a process of its own.

python -m gristmill.scaling.rung JOB.json       as `sweep` starts it
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from gristmill.errors import GristmillError, RequestError
from gristmill.files import lock_file, read_json, write_json
from gristmill.train import PretrainConfig
from gristmill.train.pretrain import run as pretrain

_POLL = 0.2  # seconds
_PATIENCE = 20.0  # seconds that a rung waits for one that was left behind by a killed sweep


def train_rung(job: Path) -> None:
    """One rung, in this process: its training, then result.json."""
    told, place = read_json(job), job.parent
    config = PretrainConfig.model_validate(told["config"])
    inputs = {name: Path(path) for name, path in told["inputs"].items()}
    with ExitStack() as held:
        _hold(place, held)
        begun = time.perf_counter()
        metrics = pretrain(config, inputs, place).metrics
        last = metrics["history"][-1]
        heldout = "heldout_loss" in last
        write_json(
            place / "result.json",
            {
                "loss": last["heldout_loss" if heldout else "loss"],
                "loss_of": "held-out text" if heldout else "the last batches trained on",
                "bits_per_byte": last["heldout_bits_per_byte" if heldout else "bits_per_byte"],
                "seconds": round(time.perf_counter() - begun, 3),  # of the last attempt
            },
        )
        shutil.rmtree(place / "checkpoints", ignore_errors=True)


def _hold(place: Path, held: ExitStack) -> None:
    """The rung's lock: one that a killed sweep left behind ends within a second, and is waited for."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            held.enter_context(
                lock_file(place / ".lock", lambda holder: f"process {holder} trains {place.name}")
            )
            return
        except RequestError:
            if time.monotonic() > until:
                raise
            time.sleep(_POLL)


def _end_with(parent: int) -> None:
    """A sweep that was killed cannot stop its rungs; they see that it is gone."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    _job = Path(sys.argv[1])
    _end_with(read_json(_job)["parent"])
    try:
        train_rung(_job)
    except GristmillError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
