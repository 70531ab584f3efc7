"""Token shards as an endless, seeded stream of training windows, mixed by weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gristmill.errors import RequestError, nearest
from gristmill.files import read_json
from gristmill.train.order import mixture, visits


class Windows:
    """Windows of `length` + 1 consecutive tokens of one split; the extra one is the last target.

    A group (a source of the corpus) is its documents end to end, cut into windows; an epoch visits each
    window once in a seeded order, and each epoch starts the cuts at another offset. Groups are mixed by
    `weights` (group -> share of the rows; missing groups are left out; {} means by the corpus's own mixture, and
    by their size where it has none).
    """

    def __init__(
        self, tokens_dir: Path, split: str, length: int, weights: Mapping[str, float], seed: int
    ) -> None:
        manifest = read_json(tokens_dir / "manifest.json")
        groups = manifest["splits"].get(split, {})
        if not weights and split == "train":
            drawn = manifest.get("mixture", {})
            weights = {name: share["tokens"] for name, share in drawn.items() if name in groups}
        sizes = {
            name: entry["tokens"] for name, entry in groups.items() if entry["tokens"] > length
        }
        if not sizes:
            raise RequestError(
                f"{tokens_dir} has no {split} group of more than {length} tokens to train on: "
                "give more data or a smaller context"
            )
        for name in weights:
            if name not in groups:
                raise RequestError(
                    f'pretrain.weights names "{name}", which is not a group of the corpus '
                    f"({', '.join(sorted(groups))}).{nearest(name, groups)}"
                )
            if weights[name] < 0:
                raise RequestError(f"pretrain.weights.{name} must not be negative: {weights[name]}")
        shares = {name: float(weights.get(name, 0)) for name in sizes} if weights else dict(sizes)
        self.groups = [name for name in sorted(shares) if shares[name] > 0]
        if not self.groups:
            raise RequestError("pretrain.weights leaves no group to train on")
        self.weights = [float(shares[name]) for name in self.groups]
        self.length, self.seed = length, seed
        self.tokens = [
            np.load(tokens_dir / f"{split}.{name}.npy", mmap_mode="r") for name in self.groups
        ]

    @property
    def total(self) -> int:
        """Tokens of the groups that are trained on."""
        return sum(len(tokens) for tokens in self.tokens)

    def rows(self, first: int, count: int, row: int = 0, rows: int = 1) -> np.ndarray:
        """Rows `first .. first+count-1` of the stream, or every rows-th of them from `row` on.

        int64 [count / rows, length + 1], whatever came before.
        """
        source, position = mixture(first, count, self.weights)
        source, position = source[row::rows], position[row::rows]
        out = np.empty((len(source), self.length + 1), dtype=np.int64)
        places = np.arange(self.length + 1)
        for group in np.unique(source).tolist():
            tokens = self.tokens[group]
            windows, slack = divmod(len(tokens) - 1, self.length)
            turns = position[source == group]
            window = visits(turns, windows, self.seed, self.groups[group])
            start = turns // windows * 7919 % (slack + 1) + window * self.length
            out[source == group] = tokens[start[:, None] + places]
        return out
