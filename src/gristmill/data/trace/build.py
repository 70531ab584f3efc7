"""Building the index of `trace`: the suffixes of each part of the training shards, sorted.

A part is sorted as bytes (Lee et al. 2021, arXiv 2107.06499): every token is written big-endian in equally many bytes,
which makes byte order token order, and of the sorted positions those where a token begins are kept. `pydivsufsort`
sorts; it needs five bytes of memory for each byte that it sorts. index.py says what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.data.trace.index import MOST_TOKENS, SCHEMA, SPLIT, load, place, shard
from gristmill.errors import RequestError, WorkError, missing_extra
from gristmill.files import hash_file, lock_file, read_object, write_json, write_with
from gristmill.stage import Progress, quiet

MEMORY = 1 << 30  # bytes that sorting one part may take
_AT_ONCE = 1 << 22  # positions that are filtered at a time
_LARGEST_SORT = (1 << 31) - 1  # bytes: divsufsort's 32-bit positions


def index_tokens(tokens_dir: Path, memory: int = MEMORY, progress: Progress = quiet) -> Path:
    """Make the index of `tokens_dir` unless it is there and still true of the shards; its directory.

    memory: bytes for sorting one part, beside the pages of mapped files, which the system takes back when it needs
    them; smaller parts make more of them, and searching slower.
    A build that was stopped starts over. Raises RequestError for what are no token shards, for shards whose
    documents begin with different tokens, and where another process is building it.
    """
    out = place(tokens_dir)
    if _current(tokens_dir):
        return out
    shards = _manifest(tokens_dir)
    out.mkdir(parents=True, exist_ok=True)
    busy = "process {} is indexing these tokens; wait until it is done ({})"
    with lock_file(out / ".lock", lambda holder: busy.format(holder, out)):
        if not _current(tokens_dir):  # unless another process did it in the meantime
            (out / "manifest.json").unlink(missing_ok=True)
            _build(tokens_dir, out, shards, memory, progress)
    return out


def sorted_suffixes(tokens: np.ndarray, width: int) -> np.ndarray:
    """int32: the byte positions of `tokens` (unsigned integers below 256 ** width) written big-endian in `width`
    bytes each, in the order of what follows them. Those divisible by `width` are where tokens begin."""
    try:
        from pydivsufsort import divsufsort
    except ImportError:
        raise missing_extra("pydivsufsort", "data") from None
    written = np.empty((len(tokens), width), np.uint8)
    for start in range(0, len(tokens), _AT_ONCE):
        piece = np.asarray(tokens[start : start + _AT_ONCE])
        for byte in range(width):
            written[start : start + len(piece), byte] = piece >> 8 * (width - 1 - byte) & 255
    return divsufsort(written.reshape(-1))


def _build(
    tokens_dir: Path, out: Path, shards: dict[str, Any], memory: int, progress: Progress
) -> None:
    vocab_size = int(shards["vocab_size"])
    width = _width(vocab_size)
    size = min(memory // (5 * width), _LARGEST_SORT // width) - MOST_TOKENS
    if size < MOST_TOKENS:
        raise RequestError(
            f"{memory:,} bytes are too few to index with; take {10 * width * MOST_TOKENS:,} or more"
        )
    groups = _groups(shards)
    separator = _separator(tokens_dir, groups)
    # Before the work: shards that change meanwhile must not pass for what was indexed.
    stamps = {group: _stamp(shard(tokens_dir, group, "npy")) for group in groups}
    hashes = {group: hash_file(shard(tokens_dir, group, "npy")) for group in groups}
    total, done = sum(shards["splits"][SPLIT][name]["tokens"] for name in groups), 0
    parts: list[dict[str, Any]] = []
    kept = {"manifest.json", ".lock"}
    for group in groups:
        tokens = load(shard(tokens_dir, group, "npy"))
        for number, start in enumerate(range(0, len(tokens), size)):
            progress(done, total, "tokens")
            names = [f"{group}.{number}.{what}.npy" for what in ("suffixes", "first")]
            count = min(size, len(tokens) - start)
            _write_part(out, names, tokens[start : start + count + MOST_TOKENS], count, vocab_size)
            parts.append({"group": group, "start": start, "suffixes": names[0], "first": names[1]})
            kept |= set(names)
            done += count
    progress(total, total, "tokens")
    for path in out.iterdir():
        if path.name not in kept:
            path.unlink()
    record = {
        "schema": SCHEMA,
        "vocab_size": vocab_size,
        "separator": separator,
        "tokenizer_sha256": shards.get("tokenizer_sha256", ""),
        "shards": {group: {**stamps[group], "sha256": hashes[group]} for group in groups},
        "parts": parts,
    }
    write_json(out / "manifest.json", record)


def _separator(tokens_dir: Path, groups: list[str]) -> int:
    """The token that all documents begin with. Raises RequestError where they do not."""
    found: set[int] = set()
    for group in groups:
        tokens = load(shard(tokens_dir, group, "npy"))
        offsets = load(shard(tokens_dir, group, "offsets.npy"))
        found |= set(np.unique(tokens[offsets[:-1][np.diff(offsets) > 0]]).tolist())
    if len(found) != 1:
        raise RequestError(
            f"{tokens_dir}: documents must all begin with one token that separates them, "
            f"not with {len(found)} different ones"
        )
    return found.pop()


def _write_part(
    out: Path, names: list[str], tokens: np.ndarray, count: int, vocab_size: int
) -> None:
    """The files of the part that has the first `count` of `tokens`."""
    numbers = np.zeros(vocab_size, np.int64)
    for start in range(0, count, _AT_ONCE):
        piece = np.asarray(tokens[start : min(count, start + _AT_ONCE)])
        if int(piece.max()) >= vocab_size:
            raise RequestError(f"the shards hold id {piece.max()}, the vocabulary ends before it")
        numbers += np.bincount(piece, minlength=vocab_size)
    width = _width(vocab_size)
    order = sorted_suffixes(tokens, width)

    def write_suffixes(temporary: Path) -> None:
        array = np.lib.format.open_memmap(temporary, "w+", np.uint32, (count,))
        filled = 0
        for piece in _token_positions(order, width, count):
            array[filled : filled + len(piece)] = piece
            filled += len(piece)
        if filled != count:
            raise WorkError(f"sorting {count:,} tokens gave {filled:,} positions")
        array.flush()

    def write_first(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, np.concatenate([[0], np.cumsum(numbers)]))

    write_with(out / names[0], write_suffixes)
    write_with(out / names[1], write_first)


def _width(vocab_size: int) -> int:
    """Bytes that hold every id."""
    return max(1, ((vocab_size - 1).bit_length() + 7) // 8)


def _token_positions(order: np.ndarray, width: int, count: int) -> Iterator[np.ndarray]:
    """Of sorted byte positions the tokens that begin there, below `count`, in the same order."""
    for start in range(0, len(order), _AT_ONCE):
        piece = order[start : start + _AT_ONCE]
        if width > 1:
            piece = piece[piece % width == 0] // width
        yield piece[piece < count]


def _current(tokens_dir: Path) -> bool:
    """Whether the index is of these very shards: by size and time, else (they were copied) by content."""
    file = place(tokens_dir) / "manifest.json"
    try:
        found = read_object(file)
    except RequestError:  # not ours to complain about: it is made anew
        return False
    shards = _manifest(tokens_dir)
    if found.get("schema") != SCHEMA or list(found.get("shards", {})) != _groups(shards):
        return False
    names = [part[what] for part in found["parts"] for what in ("suffixes", "first")]
    if not all((file.parent / name).is_file() for name in names):
        return False
    if found["tokenizer_sha256"] != shards.get("tokenizer_sha256", ""):
        return False
    touched = False
    for group, known in found["shards"].items():
        path = shard(tokens_dir, group, "npy")
        now = _stamp(path)
        if now["bytes"] != known["bytes"]:
            return False
        if now["mtime_ns"] != known["mtime_ns"]:
            if hash_file(path) != known["sha256"]:
                return False
            known["mtime_ns"], touched = now["mtime_ns"], True
    if touched:
        with suppress(OSError):  # else it is read again next time
            write_json(file, found)
    return True


def _stamp(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _manifest(tokens_dir: Path) -> dict[str, Any]:
    """The shards' own. Raises RequestError where there are none."""
    found = read_object(tokens_dir / "manifest.json")
    train = found.get("splits", {}).get(SPLIT) if isinstance(found.get("splits"), dict) else None
    if not train or not isinstance(found.get("vocab_size"), int):
        raise RequestError(
            f"{tokens_dir} holds no token shards for training: expected a manifest.json that names splits and "
            'vocab_size there, as the stage "tokens" of a recipe writes it'
        )
    missing = [
        path
        for group in train
        for path in (shard(tokens_dir, group, end) for end in ("npy", "offsets.npy", "ids.json"))
        if not path.is_file()
    ]
    if missing:
        raise RequestError(f"{missing[0]} is missing, which {tokens_dir}/manifest.json names")
    return found


def _groups(shards: dict[str, Any]) -> list[str]:
    return [name for name, has in shards["splits"][SPLIT].items() if has["tokens"]]
