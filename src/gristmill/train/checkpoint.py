"""Training state on disk: torch.distributed.checkpoint directories that are whole or are not there.

`step-000120/` appears by rename after its manifest (name, length and sha256 of every file) was written and
fsynced. Loading verifies the manifest; a damaged checkpoint is passed over for the one before it, aloud.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from gristmill.errors import WorkError
from gristmill.files import hash_file, read_json, sync_directory, write_json

_MANIFEST = "checkpoint.json"


def save(directory: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` (nested dicts of tensors and plain values) as the checkpoint of `step`.

    Raises WorkError when the disk refuses; older checkpoints are then untouched.
    """
    final = directory / f"step-{step:08d}"
    temporary = directory / f"step-{step:08d}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for unfinished in directory.glob("*.tmp"):  # of a process that was killed while it wrote
            shutil.rmtree(unfinished, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "no process group": one process is what we have
            dcp.save(state, checkpoint_id=str(temporary), no_dist=True)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        listing = {str(p.relative_to(temporary)): [p.stat().st_size, hash_file(p)] for p in files}
        write_json(temporary / _MANIFEST, {"step": step, "files": listing})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        sync_directory(directory)
    except (OSError, CheckpointException) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        cause = _cause(error)
        if not isinstance(cause, Exception):
            raise cause from None
        raise WorkError(f"could not write the checkpoint {final}: {cause}") from error
    for old in _complete(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_latest(directory: Path, state: dict[str, Any]) -> int | None:
    """Fill `state` in place from the newest sound checkpoint and return its step; None when there is none."""
    found = newest(directory)
    if found is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=str(found), no_dist=True)
    return int(read_json(found / _MANIFEST)["step"])


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
