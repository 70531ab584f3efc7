"""The work directory of a run: what its content was made from, one run at a time, nothing stale."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from gristmill import __version__
from gristmill.errors import RequestError, WorkError
from gristmill.files import hash_json, listing_hash, lock_file, read_object, write_json
from gristmill.quantize.calibration import Windows
from gristmill.quantize.settings import QuantizeConfig, Say


def key_of(source: Path, config: QuantizeConfig, windows: Windows | None) -> dict[str, Any]:
    """What finished work depends on."""
    # Sensitivities hold for any size, and blocks for any format.
    settings = config.model_dump(exclude={"target_bytes", "format"})
    return {
        "gristmill": __version__,
        "torch": torch.__version__,
        "model": str(source.resolve()),
        "weights": listing_hash(source),
        "settings": settings,
        "calibration": None if windows is None else windows.sha256,
    }


def keep_or_clear(work: Path, key: dict[str, Any], say: Say) -> None:
    """Keep the work directory if its blocks were made from the same things; else empty it."""
    file = work / "key.json"
    found = _finished(work)
    try:
        known = read_object(file)
    except RequestError:
        known = {}
    if found and hash_json(known) == hash_json(key):
        say(f"going on from what an earlier run finished ({work})")
        for path in work.glob("*.tmp"):
            path.unlink()
        return
    if found:
        differs = [name for name in key if known.get(name) != key[name]]
        say(f"{work} holds the work of another run ({', '.join(differs)} differ); starting over")
    for path in work.iterdir():
        if path.name != "lock":
            path.unlink()
    write_json(file, key)


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """One run at a time for one target; the lock dies with the process."""
    work.mkdir(parents=True, exist_ok=True)
    refusal = (
        f"another run is writing there (it works in {work}); wait for it, or name another output"
    )
    with lock_file(work / "lock", lambda holder: refusal):
        try:
            yield
        finally:
            if work.is_dir() and not _finished(work):
                shutil.rmtree(work)


def _finished(work: Path) -> list[Path]:
    """What a run need not do again; what was being written when it was killed (*.tmp) is not."""
    return [
        path
        for path in work.iterdir()
        if path.name not in ("lock", "key.json") and path.suffix != ".tmp"
    ]


@contextmanager
def disk_told(target: Path) -> Iterator[None]:
    """Raises WorkError, naming `target`, for what the disk refuses; safetensors has an exception of its own for it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise WorkError(
            f"{target} cannot be written: {why}. What is finished is kept: the same command goes on from there"
        ) from error


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
