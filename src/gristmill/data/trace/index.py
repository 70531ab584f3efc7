"""What the index of `trace` is on disk, and how it is opened.

A suffix array lists the positions of a token sequence in the order of what follows them, so all places that go on
in the same way lie side by side. Beside `tokens/` lies `tokens.trace/`: for each part of each group's shard
`{group}.{number}.suffixes.npy` (uint32, from the part's start) and `.first.npy` (int64 [vocab_size + 1]: where the
suffixes that begin with each token lie), and `manifest.json`, written last. That is 4 bytes a token, twice the shards
of a vocabulary up to 65,536. Only the split "train" is indexed: it is what a model learns from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gristmill.errors import RequestError
from gristmill.files import read_json, read_object

SCHEMA = 1
SPLIT = "train"
MOST_TOKENS = 16_384  # of a text: a part is sorted with so many tokens beyond its end, so order holds for matches


@dataclass(frozen=True)
class Part:
    """A run of a group's tokens whose suffixes are sorted.

    suffixes: uint32 [n], positions in `tokens`. first: int64 [vocab_size + 1].
    tokens: the shard from the part's `start` on, to the shard's end: matches go on behind the part.
    """

    group: str
    start: int
    suffixes: np.ndarray
    first: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class Index:
    """An index open for reading; nothing of it is in memory but what was touched.

    separator: the token that begins every document. tokenizer_sha256: of the tokenizer that made the shards.
    """

    tokens_dir: Path
    parts: tuple[Part, ...]
    vocab_size: int
    separator: int
    tokenizer_sha256: str

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 [vocab_size]: how often each token was there to be learned."""
        total = np.zeros(self.vocab_size, np.int64)
        for part in self.parts:
            total += np.diff(part.first)
        return total

    @cached_property
    def offsets(self) -> dict[str, np.ndarray]:
        """group -> where its documents begin, and the end."""
        names = dict.fromkeys(part.group for part in self.parts)
        return {name: np.load(shard(self.tokens_dir, name, "offsets.npy")) for name in names}

    @cached_property
    def ids(self) -> dict[str, list[str]]:
        """group -> the names of its documents."""
        return {name: read_json(shard(self.tokens_dir, name, "ids.json")) for name in self.offsets}


def place(tokens_dir: Path) -> Path:
    """Where the index of these shards lies: beside them, for what a stage made must stay as it is."""
    return tokens_dir.with_name(f"{tokens_dir.name}.trace")


def open_index(tokens_dir: Path) -> Index:
    """The index that `index_tokens` made. Raises RequestError where there is none for these shards."""
    found = read_object(place(tokens_dir) / "manifest.json")
    if found.get("schema") != SCHEMA:
        raise RequestError(f"{tokens_dir} has no index; `gristmill trace` makes it")
    shards = {group: load(shard(tokens_dir, group, "npy")) for group in found["shards"]}
    parts = tuple(
        Part(
            part["group"],
            part["start"],
            load(place(tokens_dir) / part["suffixes"]),
            np.load(place(tokens_dir) / part["first"]),
            shards[part["group"]][part["start"] :],
        )
        for part in found["parts"]
    )
    return Index(
        tokens_dir, parts, found["vocab_size"], found["separator"], found["tokenizer_sha256"]
    )


def shard(tokens_dir: Path, group: str, ending: str) -> Path:
    return tokens_dir / f"{SPLIT}.{group}.{ending}"


def load(path: Path) -> np.ndarray:
    """Memory-mapped, as a plain array: numpy's own kind costs more at every access."""
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except (ValueError, EOFError) as error:
        raise RequestError(f"{path} is damaged: {error}") from None
