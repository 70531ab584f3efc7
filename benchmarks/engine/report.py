"""Ratios beside their goals, on the screen and in the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Ratio:
    what: str
    value: float
    goal: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def __str__(self) -> str:
        line = f"  {self.what:66} {self.value:7.3f}"
        if self.goal is None:
            return line
        bound = "at most" if self.at_most else "at least"
        return line + f"   goal: {bound} {self.goal:g}{'' if self.met else ', MISSED'}"

    def record(self) -> dict[str, Any]:
        kept: dict[str, Any] = {"what": self.what, "value": self.value}
        if self.goal is not None:
            kept |= {"goal": self.goal, "at_most": self.at_most, "met": self.met}
        return kept


def finish(
    ratios: Sequence[Ratio],
    unit: str,
    runs: dict[str, list[float]],
    about: dict[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Print the medians and the ratios; what to write down of a part."""
    for name, values in runs.items():
        spread = f"({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
        print(f"  {name:44} {median(values):9.4g} {unit} {spread}")
    for ratio in ratios:
        print(ratio)
    return {
        "ratios": [ratio.record() for ratio in ratios],
        "unit": unit,
        "medians": {name: median(values) for name, values in runs.items()},
        "runs": runs,
        "about": about,
        **more,
    }
