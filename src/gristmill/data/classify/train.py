"""Training of a classifier from two piles of texts, with its report on texts it has not seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gristmill.data.classify.classifier import Classifier
from gristmill.data.classify.features import features
from gristmill.data.classify.fit import Rows, fit_logistic, fit_platt, sigmoid
from gristmill.data.classify.metrics import report
from gristmill.errors import RequestError

LEAST = 50  # texts of each kind: with fewer, five are left to calibrate on


@dataclass(frozen=True)
class TrainConfig:
    buckets: int = 1 << 20  # a power of two; 4 bytes each on disk
    c: float = 10.0  # inverse strength of the penalty on weights
    calibrate_share: float = 0.1
    test_share: float = 0.1


def train(
    good: Iterable[str],
    bad: Iterable[str],
    out: Path,
    seed: int = 0,
    config: TrainConfig | None = None,
) -> Classifier:
    """Trains on `good` and `bad`, writes the classifier into the folder `out`, and gives it back.

    Which texts train, calibrate and test is drawn from `seed` and the text itself: not from the order, and
    equal texts never stand on two sides. Texts are read once; about 16 bytes for each of their distinct
    words and word pairs are held in memory. Raises RequestError where there are fewer
    than 50 of a kind.
    """
    config = config or TrainConfig()
    if config.buckets < 2 or config.buckets & (config.buckets - 1):
        raise RequestError(f"buckets is {config.buckets}, which is no power of two. Take 1048576.")
    rows: list[NDArray[np.uint32]] = []
    kinds: list[float] = []
    places: list[bytes] = []
    for label, texts in ((1.0, good), (0.0, bad)):
        for text in texts:
            rows.append(features(text, config.buckets))
            kinds.append(label)
            places.append(_place(text, seed))
    labels = np.array(kinds)
    counts = {"good": int(labels.sum()), "bad": len(labels) - int(labels.sum())}
    for name, count in counts.items():
        if count < LEAST:
            raise RequestError(
                f"{count} {name} texts are too few to learn from. Give {LEAST} or more."
            )
    # Summing floats in another order gives other last digits: the order is the texts' own.
    order = sorted(range(len(places)), key=lambda i: (places[i], kinds[i]))
    share = np.array([int.from_bytes(places[i][:8], "big") / 2**64 for i in order])
    labels = labels[order]
    rows = [rows[i] for i in order]
    test = share < config.test_share
    calibrate = ~test & (share < config.test_share + config.calibrate_share)
    parts = {"training": ~test & ~calibrate, "calibration": calibrate, "test": test}
    for name, inside in parts.items():
        if len(set(labels[inside])) < 2:
            raise RequestError(
                f"the {name} texts are all of one kind. Give more texts of the rarer kind."
            )

    fitted = parts["training"]
    weight, bias = _fit(_rows(rows, fitted), labels[fitted], config)
    slope, offset = fit_platt(_rows(rows, calibrate).times(weight) + bias, labels[calibrate])
    scores = _rows(rows, test).times(weight) + bias
    about = {
        "config": asdict(config),
        "seed": seed,
        "texts": {name: int(inside.sum()) for name, inside in parts.items()} | counts,
        "report": report(sigmoid(slope * scores + offset), labels[test]),
    }
    classifier = Classifier(weight.astype(np.float32), bias, slope, offset, about)
    classifier.save(Path(out))
    return classifier


def _fit(
    rows: Rows, labels: NDArray[np.float64], config: TrainConfig
) -> tuple[NDArray[np.float64], float]:
    """Weights of all buckets. Those that no row has are 0, and are left out of the work."""
    used, buckets = np.unique(rows.buckets, return_inverse=True)
    small, bias = fit_logistic(rows.with_buckets(buckets), labels, len(used), config.c)
    weight = np.zeros(config.buckets)
    weight[used] = small
    return weight, bias


def _place(text: str, seed: int) -> bytes:
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=16, key=f"gristmill {seed}".encode()[:64]
    ).digest()


def _rows(rows: list[NDArray[np.uint32]], inside: NDArray[np.bool_]) -> Rows:
    return Rows([row for row, is_in in zip(rows, inside, strict=True) if is_in])
