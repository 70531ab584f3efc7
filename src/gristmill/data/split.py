"""The held-out split: whole packages, files or rows, drawn by hash of their names, after deduplication."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

# No unit is more than this share of what is held out while smaller ones suffice: one large package would
# make the held-out number the number of that package.
LARGEST_SHARE = 1 / 3


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
