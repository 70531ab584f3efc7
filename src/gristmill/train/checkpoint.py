"""Training state on disk: torch.distributed.checkpoint directories that are whole or are not there.

`step-000120/` appears by rename after its manifest (name, length and sha256 of every file) was written and
fsynced. Loading verifies the manifest; a damaged checkpoint is passed over for the one before it, aloud.
A checkpoint knows parameters by name and as wholes, so one layout's loads under any other.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from gristmill.errors import RequestError, WorkError
from gristmill.files import hash_file, read_json, sync_directory, write_json

_MANIFEST = "checkpoint.json"


class Saver:
    """Saves beside the training: the state is copied, and a thread writes the copy.

    group: of all processes, gloo, used by nothing else; None: there is one process. One save is under way at a time.
    """

    def __init__(self, directory: Path, group: dist.ProcessGroup | None = None) -> None:
        self.directory, self.group = directory, group
        self.blocked = 0.0  # seconds that training waited for the last save
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Raises WorkError when the disk refused this save, or the one before."""
        started = monotonic()
        self.wait()
        copy = tree_map(_copied, state)
        self._thread = Thread(target=self._write, args=(step, copy), name="checkpoint")
        self._thread.start()
        self.blocked = monotonic() - started

    def wait(self) -> None:
        """Until what was saved is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, step: int, state: dict[str, Any]) -> None:
        try:
            save(self.directory, step, state, self.group)
        except BaseException as error:
            self._error = error


def _copied(value: Any) -> Any:
    if isinstance(value, DTensor):
        local = value.to_local().detach().to("cpu", copy=True)
        mesh, placements = value.device_mesh, value.placements
        return DTensor.from_local(
            local, mesh, placements, run_check=False, shape=value.shape, stride=value.stride()
        )
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def save(
    directory: Path,
    step: int,
    state: dict[str, Any],
    group: dist.ProcessGroup | None = None,
    keep: int = 2,
) -> Path:
    """Write `state` (nested dicts of tensors and plain values) as the checkpoint of `step`.

    With a group all its processes call this, each with what it has. Raises WorkError when the disk refuses; older
    checkpoints are then untouched.
    """
    final = directory / f"step-{step:08d}"
    temporary = directory / f"step-{step:08d}.tmp"
    first = group is None or dist.get_rank(group) == 0
    try:
        if first:
            directory.mkdir(parents=True, exist_ok=True)
            for unfinished in directory.glob(
                "*.tmp"
            ):  # of a process that was killed while it wrote
                shutil.rmtree(unfinished, ignore_errors=True)
        if group is not None:
            dist.barrier(group)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "no process group": one process is what we have
            dcp.save(
                state, checkpoint_id=str(temporary), process_group=group, no_dist=group is None
            )
        if not first:
            return final
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        listing = {str(p.relative_to(temporary)): [p.stat().st_size, hash_file(p)] for p in files}
        write_json(temporary / _MANIFEST, {"step": step, "files": listing})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        sync_directory(directory)
    except (OSError, CheckpointException) as error:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        cause = _cause(error)
        if not isinstance(cause, Exception):
            raise cause from None
        raise WorkError(f"could not write the checkpoint {final}: {cause}") from error
    # Later ones were passed over when this run began: they are damaged, or of a course that was given up.
    complete = _complete(directory)
    later = [place for place in complete if place.name > final.name]
    for old in [*[p for p in complete if p.name <= final.name][:-keep], *later]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_latest(
    directory: Path, state: dict[str, Any], group: dist.ProcessGroup | None = None
) -> int | None:
    """Fill `state` in place from the newest sound checkpoint and return its step; None when there is none.

    What the checkpoint has besides is left alone. With a group all its processes call this.
    """
    found = [newest(directory) if group is None or dist.get_rank(group) == 0 else None]
    if group is not None:  # one reads and hashes all of it, not each
        dist.broadcast_object_list(found, 0, group)
    if found[0] is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = str(found[0])
        try:
            dcp.load(state, checkpoint_id=place, process_group=group, no_dist=group is None)
        except CheckpointException as error:
            raise RequestError(
                f"{place} does not fit this training ({_cause(error)}): it is one with other settings; remove "
                "it, or give another directory"
            ) from error
    return int(read_json(found[0] / _MANIFEST)["step"])


def newest(directory: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; warns of each damaged one it passes over."""
    for found in reversed(_complete(directory)):
        damage = _damage(found)
        if not damage:
            return found
        warnings.warn(
            f"checkpoint {found} is damaged ({damage}); trying the one before it", stacklevel=2
        )
    return None


def _complete(directory: Path) -> list[Path]:
    """Checkpoints whose rename happened, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.is_dir() and not p.name.endswith(".tmp"))


def _cause(error: BaseException) -> BaseException:
    """What torch wrapped into a CheckpointException (a BaseException whose text is a traceback): a full disk,
    a KeyboardInterrupt."""
    if isinstance(error, CheckpointException):
        return next((failure for failure, _ in error.failures.values()), error)
    return error


def _damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, or ''."""
    try:
        listing = read_json(checkpoint / _MANIFEST)["files"]
    except (OSError, ValueError, KeyError):
        return "no readable manifest"
    for name, (size, digest) in listing.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if hash_file(path) != digest:
            return f"{name} does not match its checksum"
    return ""
