"""The held-out split: whole packages, files or rows, drawn by hash of their names, after deduplication."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gristmill.data.decisions import COPIES, Labels
from gristmill.errors import RequestError

# No unit is more than this share of what is held out while smaller ones suffice: one large package would
# make the held-out number the number of that package.
LARGEST_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Splits:
    """heldout: bool per document. together: package -> the package that it is held out with."""

    heldout: np.ndarray
    together: dict[str, str]


def split(labels: Labels, fraction: float, seed: int) -> Splits:
    """Which kept documents are held out. Units are packages in site-packages, else files (rows of JSONL).

    Packages that share a near duplicate (forks, backports) count as one unit: one must not be held out while
    the other teaches the model its text. Raises RequestError when there is only one unit.
    """
    together = united(_package_pairs(labels))
    heldout = np.zeros(len(labels), bool)
    if fraction <= 0:
        return Splits(heldout, together)
    groups, sizes, kept = labels.groups.names, labels.size.tolist(), labels.kept
    names: list[str] = []
    for start, table in labels.columns("unit"):
        alive = kept[start : start + table.num_rows]
        units = [str(unit) for unit in table["unit"].to_pylist()]
        names += [together.get(u, u) if a else "" for u, a in zip(units, alive, strict=True)]
    alive = np.flatnonzero(kept).tolist()
    group = labels.group.tolist()
    if len({(group[at], names[at]) for at in alive}) < 2:
        raise RequestError(
            f"only one document is left ({names[alive[0]]}), so none can be held out. "
            "Add documents, cut the file into several, or set data.heldout_fraction=0."
        )
    held = held_out(((groups[group[at]], names[at], sizes[at]) for at in alive), fraction, seed)
    heldout[[at for at in alive if (groups[group[at]], names[at]) in held]] = True
    return Splits(heldout, together)


def _package_pairs(labels: Labels) -> Iterable[tuple[str, str]]:
    if "packages" not in labels.groups.numbers:
        return
    packages = labels.groups.numbers["packages"]
    copies = [labels.reasons.numbers[name] for name in COPIES if name in labels.reasons.numbers]
    for at in np.flatnonzero(np.isin(labels.reason, copies) & (labels.of >= 0)).tolist():
        of = int(labels.of[at])
        if labels.group[at] == labels.group[of] == packages:
            one, other = (labels.packages.names[labels.package[i]] for i in (at, of))
            if one and other:
                yield one, other


def held_out(
    units: Iterable[tuple[str, str, int]], fraction: float, seed: int
) -> set[tuple[str, str]]:
    """The (group, unit) pairs to hold out, of (group, unit, bytes) triples; a unit may come many times.

    In each group, units are taken in the order of a hash of (seed, name), first those of at most LARGEST_SHARE
    of the wanted bytes, until `fraction` of the group's bytes is reached. A group of two units or more always
    gives one and keeps one.
    """
    groups: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for group, unit, size in units:
        groups[group][unit] += size
    taken: set[tuple[str, str]] = set()
    if fraction <= 0:
        return taken
    for group in sorted(groups):
        sizes = groups[group]
        wanted = fraction * sum(sizes.values())
        drawn = sorted(sizes, key=lambda name: _draw(seed, group, name))
        small = [name for name in drawn if sizes[name] <= LARGEST_SHARE * wanted]
        # What is too large for the small ones' turn comes by size, so that the overshoot is the least.
        large = sorted(set(drawn) - set(small), key=lambda name: (sizes[name], name))
        held = 0
        for unit in (small + large)[: len(sizes) - 1]:
            # The last one in may overshoot, but only by less than stopping before it would miss.
            if held and held + sizes[unit] - wanted > wanted - held:
                break
            taken.add((group, unit))
            held += sizes[unit]
    return taken


def _draw(seed: int, group: str, unit: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}\0{unit}".encode()).digest()


def united(links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name -> the first name of its cluster, for names joined by `links`, directly or through others."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]
            name = above
        return name

    for a, b in links:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {name: root(name) for name in sorted(parent)}
