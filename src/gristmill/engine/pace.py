"""How many tokens to draft: as many as pay for themselves, by what was accepted and what steps took.

A j-th draft is kept with probability about α^j. It costs one more row in the step (`per_token` seconds) and
what the drafter needs for it. It is worth that when α^j is more than what plain decoding gives in the time.
"""

from __future__ import annotations

from dataclasses import dataclass

_FORGET = 0.97  # weight of what is known, a step
_PRIOR = 0.6, 2.0  # acceptance before anything is known, and how many observations it counts for
_ROW_SHARE = 0.03  # of a step's time, for one more token, before steps of other sizes were seen
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 1024  # steps without drafts before another try


class StepTimes:
    """Seconds of decoding steps as `fixed + per_token · tokens`, by least squares over recent ones."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # weight, tokens, seconds, tokens², tokens · seconds

    def record(self, tokens: int, seconds: float) -> None:
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = [_FORGET * old + add for old, add in zip(self._sums, new, strict=True)]

    def line(self) -> tuple[float, float]:
        """(fixed, per_token) in seconds; zeros before the first step."""
        weight, x, y, xx, xy = self._sums
        if weight == 0:
            return 0.0, 0.0
        mean_x, mean_y = x / weight, y / weight
        spread = xx / weight - mean_x * mean_x
        slope = _ROW_SHARE * mean_y
        if spread > 0.05:
            slope = (xy / weight - mean_x * mean_y) / spread
        slope = min(max(slope, 0.0), mean_y / mean_x)
        return mean_y - slope * mean_x, slope


@dataclass
class Acceptance:
    """One request's drafts: how many were examined and accepted, the old ones counting less."""

    accepted: float
    examined: float
    pause: int = _FIRST_PAUSE  # steps still to go without drafts
    next_pause: int = _FIRST_PAUSE

    @property
    def rate(self) -> float:
        return self.accepted / self.examined


class Pace:
    """Chooses the number of drafts for each request of a step."""

    def __init__(self) -> None:
        self.times = StepTimes()
        self.draft_seconds = 0.0  # the drafter's own time for one draft
        self._everyone = Acceptance(_PRIOR[0] * _PRIOR[1], _PRIOR[1])

    def newcomer(self) -> Acceptance:
        """A request begins with what the others showed."""
        return Acceptance(self._everyone.rate * _PRIOR[1], _PRIOR[1])

    def drafts(self, of: Acceptance, rows: int, most: int) -> int:
        """How many to draft for one of `rows` requests; sometimes one where none pays, to see whether that changed."""
        fixed, per_token = self.times.line()
        plain = rows / (fixed + per_token * rows) if fixed + per_token > 0 else 0.0  # tokens/second
        least = (per_token + self.draft_seconds) * plain
        count, kept = 0, of.rate
        while count < most and kept > least:
            count, kept = count + 1, kept * of.rate
        if count or not most:
            return count
        of.pause -= 1
        if of.pause > 0:
            return 0
        of.pause, of.next_pause = of.next_pause, min(2 * of.next_pause, _LONGEST_PAUSE)
        return 1

    def verified(self, of: Acceptance, examined: int, accepted: int) -> None:
        """Learn from one request's drafts. Those after the first refused one, or after the end, were not examined."""
        if accepted == examined:
            of.next_pause = _FIRST_PAUSE
        for one in (of, self._everyone):
            one.accepted = 0.9 * one.accepted + accepted
            one.examined = 0.9 * one.examined + examined

    def took(self, seconds: float) -> None:
        """What the drafter needed for one draft."""
        old = self.draft_seconds or seconds
        self.draft_seconds = 0.9 * old + 0.1 * seconds
