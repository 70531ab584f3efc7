"""How much of each source a training run draws: weights, a budget of tokens, and caps on repetition.

With weights w (summing to 1), caps c_i = max_epochs_i · size_i and a budget B, source i gets min(c_i, λ·w_i), where λ
is the one number for which these sum to B: what a capped source cannot take is shared among the others by weight
("waterfilling"). Everything is computed in fractions and rounded once, by largest remainder, so the numbers sum to
B exactly and each is less than one token off its share.

Repeating up to 4 epochs costs next to nothing, and 16 are useless (Muennighoff et al. 2023, arXiv 2305.16264).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gristmill.errors import RequestError, nearest

MAX_EPOCHS = 4.0


@dataclass(frozen=True)
class Share:
    """tokens: to draw of a source. epochs: how often that goes over it. capped: it would have been given more."""

    tokens: int
    epochs: float
    capped: bool


def mixture(
    sizes: Mapping[str, int],
    budget: int,
    *,
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    max_epochs: Mapping[str, float] | float = MAX_EPOCHS,
) -> dict[str, Share]:
    """What to draw of each source, in the order of `sizes`, for `budget` tokens in all.

    sizes: tokens of each source. weights: their proportions, of any sum; without them they follow from the sizes,
    as size ** (1 / temperature): 1 is in proportion, more favours small sources, infinity treats all alike.
    max_epochs: for all, or for each (one that is not named has MAX_EPOCHS); infinity for no cap.

    Raises RequestError for what cannot be met: unknown names, negative or empty weights, a budget that the caps
    do not let through.
    """
    if budget < 0:
        raise RequestError(f"a budget of {budget:,} tokens is none; give 0 or more")
    for name, size in sizes.items():
        if size < 0:
            raise RequestError(f"source {name!r} has {size:,} tokens; a size is 0 or more")
    shares = _weights(sizes, weights, temperature)
    caps = _caps(sizes, max_epochs)
    ideal = _fill(shares, caps, budget)
    tokens = _rounded(ideal, caps, budget)
    return {
        name: Share(
            tokens[name],
            tokens[name] / size if size else 0.0,
            shares[name] > 0 and caps[name] is not None and ideal[name] == caps[name],
        )
        for name, size in sizes.items()
    }


def draws(ids: Sequence[str], lengths: Sequence[int], tokens: int, seed: int) -> np.ndarray:
    """int64 [documents]: how often to take each document for about `tokens` tokens of their source.

    Whole epochs take all; the rest takes documents whole, in an order drawn by hash of (seed, id), as many as come
    nearest to `tokens`: the sum is off by half the longest document at most. More tokens never take a document
    away, and neither order nor number of documents decides which come first.
    """
    sizes = np.asarray(lengths, np.int64)
    total = int(sizes.sum())
    if tokens < 0 or (tokens and not total):
        raise RequestError(f"{tokens:,} tokens cannot be drawn of documents that have {total:,}")
    epochs, rest = divmod(tokens, total) if total else (0, 0)
    times = np.full(len(ids), epochs, np.int64)
    order = np.array(
        sorted(range(len(ids)), key=lambda i: (_drawn(seed, ids[i]), ids[i])), np.int64
    )
    sums = np.concatenate([[0], np.cumsum(sizes[order])])
    times[order[: int(np.abs(sums - rest).argmin())]] += 1
    return times


def _drawn(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "replace"), digest_size=16).digest()


def _exact(number: float) -> Fraction:
    """What a person wrote: 0.3 is three tenths, not the binary number next to it."""
    return Fraction(repr(float(number)))


def _weights(
    sizes: Mapping[str, int], weights: Mapping[str, float] | None, temperature: float
) -> dict[str, Fraction]:
    """Proportions that sum to 1; a source of no tokens has none, as nothing can be drawn of it."""
    if weights is None:
        if not temperature > 0:
            raise RequestError(f"a temperature is above 0, not {temperature}")
        # Scaled by the largest: a low temperature must not overflow.
        largest = max(sizes.values(), default=0)
        chosen = {
            name: Fraction(size, largest)
            if temperature == 1
            else Fraction((size / largest) ** (1 / temperature))
            for name, size in sizes.items()
            if size
        }
    else:
        for name, weight in weights.items():
            if name not in sizes:
                raise RequestError(f"no source is called {name!r}.{nearest(name, sizes)}")
            if not (math.isfinite(weight) and weight >= 0):
                raise RequestError(
                    f"the weight of {name!r} is {weight}; give a number of 0 or more"
                )
            if weight and not sizes[name]:
                raise RequestError(f"source {name!r} has a weight and no tokens")
        chosen = {name: _exact(weights.get(name, 0)) for name in sizes}
    total = sum(chosen.values())
    if not total:
        raise RequestError("no source has both tokens and a weight above 0")
    return {name: chosen.get(name, Fraction(0)) / total for name in sizes}


def _caps(
    sizes: Mapping[str, int], max_epochs: Mapping[str, float] | float
) -> dict[str, int | None]:
    """The most tokens of each, whole ones; None for no cap."""
    if isinstance(max_epochs, Mapping):
        for name in max_epochs:
            if name not in sizes:
                raise RequestError(f"no source is called {name!r}.{nearest(name, sizes)}")
    caps: dict[str, int | None] = {}
    for name, size in sizes.items():
        epochs = max_epochs.get(name, MAX_EPOCHS) if isinstance(max_epochs, Mapping) else max_epochs
        if not epochs >= 0:
            raise RequestError(f"max_epochs of {name!r} is {epochs}; give a number of 0 or more")
        caps[name] = None if math.isinf(epochs) else math.floor(_exact(epochs) * size)
    return caps


def _fill(
    shares: Mapping[str, Fraction], caps: Mapping[str, int | None], budget: int
) -> dict[str, Fraction]:
    """min(cap, λ · share) of each, for the λ at which they sum to the budget."""
    filled = {name: Fraction(0) for name in shares}
    left, open_ = Fraction(budget), [name for name, share in shares.items() if share]
    while open_ and left:
        level = left / sum(shares[name] for name in open_)
        full = {
            name: cap
            for name in open_
            if (cap := caps[name]) is not None and level * shares[name] >= cap
        }
        if not full:
            return filled | {name: level * shares[name] for name in open_}
        # λ only rises as sources fill up, so who is full now stays full.
        filled |= {name: Fraction(cap) for name, cap in full.items()}
        left -= sum(full.values())
        open_ = [name for name in open_ if name not in full]
    if left:
        raise RequestError(
            f"{budget:,} tokens are asked for, and these sources give {budget - int(left):,} at most under max_epochs; "
            "lower the budget, raise max_epochs, or weigh more sources"
        )
    return filled


def _rounded(
    ideal: Mapping[str, Fraction], caps: Mapping[str, int | None], budget: int
) -> dict[str, int]:
    """Whole tokens that sum to the budget: those with the largest remainders are rounded up, the first names of
    equal ones. A capped source has no remainder, so no cap is passed."""
    tokens = {name: math.floor(value) for name, value in ideal.items()}
    missing = budget - sum(tokens.values())
    for name in sorted(ideal, key=lambda name: (tokens[name] - ideal[name], name))[:missing]:
        tokens[name] += 1
    return tokens
