"""Reading as much as the limit needs: units are curated in waves until every group has its share or is at its end.

The share of a group is `max_bytes` poured evenly over what the groups have kept (after deduplication); what one
lacks goes to the others. How much is read follows from the sources and the settings alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gristmill.data.execute import Execute
from gristmill.data.sources import Group, Item
from gristmill.data.units import Part, Unit, cut
from gristmill.stage import Progress

READ_AHEAD = 1.1  # of the bytes that lack: some of what is read will be dropped


@dataclass(slots=True)
class Reading:
    """A group, how far it was read, and how much of it is kept."""

    group: Group
    waiting: Iterator[Unit]
    following: Unit | None
    parts: list[Part] = field(default_factory=list)
    kept: int = 0

    @property
    def at_end(self) -> bool:
        return self.following is None

    def take(self, wanted: float) -> list[Unit]:
        """The next units, of about `wanted` bytes on disk."""
        taken: list[Unit] = []
        size = 0
        while size < wanted and self.following is not None:
            taken.append(self.following)
            size += self.following.bytes
            self.following = next(self.waiting, None)
        return taken

    def unread(self) -> Iterator[Item]:
        """The items that were not read. Uses the reading up."""
        while self.following is not None:
            yield from self.following.items
            self.following = next(self.waiting, None)


def begin(group: Group) -> Reading:
    units = cut(group)
    return Reading(group, units, next(units, None))


def shares(readings: list[Reading], max_bytes: float) -> list[float]:
    """Bytes of text that each group gives: all that it keeps, or its part of the limit."""
    sizes = [reading.kept if reading.at_end else max_bytes for reading in readings]
    return even_shares(sizes, max_bytes)


def read_more(
    readings: list[Reading], max_bytes: float, execute: Execute, progress: Progress
) -> bool:
    """Curate the units that the groups lack, by what is known now; False when none lacks any."""
    wanted: list[tuple[Reading, list[Unit]]] = []
    for reading, share in zip(readings, shares(readings, max_bytes), strict=True):
        lack = share - reading.kept
        if not reading.at_end and lack > 0:
            wanted.append((reading, reading.take(READ_AHEAD * lack)))
    units = [unit for _, taken in wanted for unit in taken]
    if not units:
        return False
    done, total = 0, sum(unit.bytes for unit in units)
    made = execute(units)
    for reading, taken in wanted:
        for unit in taken:
            reading.parts.append(next(made))
            done += unit.bytes
            progress(done, total, "B", reading=reading.group.name)
    return True


def even_shares(sizes: list[float], total: float) -> list[float]:
    """`total` poured evenly over vessels of `sizes`: nobody gets more than it holds, the rest is shared."""
    if total == float("inf"):
        return list(sizes)
    shares = [0.0] * len(sizes)
    left = total
    order = sorted(range(len(sizes)), key=lambda number: sizes[number])
    for position, number in enumerate(order):
        shares[number] = min(sizes[number], left / (len(order) - position))
        left -= shares[number]
    return shares
