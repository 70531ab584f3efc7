"""A decision is data: limits on signals, in an order, and what became of one document's signals under them.

Signals are measured once and kept with the document, so limits change without reading the text again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from gristmill.errors import RequestError, nearest

NEAR = 0.05  # of the limit: closer than this is "nearly removed"


@dataclass(frozen=True, slots=True)
class Rule:
    """`reason` applies when `signal` is below `at_least` or above `at_most`."""

    reason: str
    signal: str
    at_least: float | None = None
    at_most: float | None = None

    def broken_by(self, value: float) -> bool:
        low, high = self.at_least, self.at_most
        return (low is not None and value < low) or (high is not None and value > high)

    def nearly_broken_by(self, value: float) -> bool:
        """Kept, but would not be if the limit were 5% stricter."""
        if self.broken_by(value):
            return False
        low = self.at_least is not None and value < self.at_least * (1 + NEAR)
        return low or (self.at_most is not None and value > self.at_most * (1 - NEAR))

    @property
    def limit(self) -> str:
        """For people: ">= 50", "<= 0.2", "3..10"."""
        if self.at_least is None or self.at_most is None:
            return f"<= {self.at_most:g}" if self.at_least is None else f">= {self.at_least:g}"
        return f"{self.at_least:g}..{self.at_most:g}"


@dataclass(frozen=True, slots=True)
class Profile:
    """The rules for one kind of text, in the order in which their reasons are told.

    words: the word definition of its signals (gristmill.data.text.words). rewrites: C4's line rules drop lines
    of the text, and FineWeb's signals are of what is left. terminal_punctuation: those line rules also drop
    lines that end without punctuation, as C4 did.
    """

    name: str
    words: str
    rules: tuple[Rule, ...]
    rewrites: bool = False
    terminal_punctuation: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule beside the value that was held against it."""

    reason: str
    signal: str
    value: float
    limit: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """broken: every rule that the document breaks; the first of them is why it is dropped."""

    broken: tuple[Finding, ...] = ()

    @property
    def reason(self) -> str:
        """The first reason, or "" when the document is kept."""
        return self.broken[0].reason if self.broken else ""

    @property
    def keep(self) -> bool:
        return not self.broken


def judge(signals: Mapping[str, float], profile: Profile) -> Verdict:
    """`signals` must hold every signal that the profile's rules name."""
    return Verdict(
        tuple(
            _found(rule, signals) for rule in profile.rules if rule.broken_by(signals[rule.signal])
        )
    )


def nearly(signals: Mapping[str, float], profile: Profile) -> tuple[Finding, ...]:
    """The rules that the document keeps by less than 5% of their limit."""
    return tuple(
        _found(rule, signals)
        for rule in profile.rules
        if rule.nearly_broken_by(signals[rule.signal])
    )


def with_limits(profile: Profile, limits: Mapping[str, float | Literal["off"]]) -> Profile:
    """`profile` with other limits: {"dup_line_char_frac": 0.3, "stop_words": "off"}.

    A name is a rule's signal, or its reason where one signal has two rules. Raises RequestError for a name that
    no rule or several rules bear, and for a value that is neither a number from 0 up nor "off".
    """
    rules = list(profile.rules)
    for name, value in limits.items():
        at = _named(profile, name)
        if value != "off" and not _number(value):
            raise RequestError(
                f'limit "{name}" of profile "{profile.name}" is {value!r}: it must be a number of at least 0, '
                'or "off"'
            )
        if value == "off":
            rules[at] = replace(rules[at], at_least=None, at_most=None)
        elif rules[at].at_least is not None:
            rules[at] = replace(rules[at], at_least=float(value))
        else:
            rules[at] = replace(rules[at], at_most=float(value))
    kept = tuple(r for r in rules if r.at_least is not None or r.at_most is not None)
    return replace(profile, rules=kept)


def _found(rule: Rule, signals: Mapping[str, float]) -> Finding:
    return Finding(rule.reason, rule.signal, signals[rule.signal], rule.limit)


def _number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= 0


def _named(profile: Profile, name: str) -> int:
    at = [i for i, rule in enumerate(profile.rules) if name in (rule.signal, rule.reason)]
    if len(at) == 1:
        return at[0]
    if not at:
        names = {n for rule in profile.rules for n in (rule.signal, rule.reason)}
        raise RequestError(
            f'profile "{profile.name}" has no rule on "{name}".{nearest(name, sorted(names))} '
            f"It has rules on {', '.join(dict.fromkeys(r.signal for r in profile.rules))}."
        )
    other = [profile.rules[i] for i in at]
    choices = [r.signal if name == r.reason else r.reason for r in other]
    raise RequestError(
        f'profile "{profile.name}" has {len(at)} rules on "{name}": say {" or ".join(choices)}'
    )
