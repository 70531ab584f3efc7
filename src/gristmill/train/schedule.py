"""Learning-rate schedules as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["wsd", "cosine", "constant"]


def lr_scale(
    step: int, steps: int, *, schedule: Schedule, warmup_steps: int, decay_fraction: float
) -> float:
    """The factor in (0, 1] on the peak learning rate at `step` (0-based) of `steps`.

    Linear warmup over `warmup_steps`; then "wsd" holds and decays linearly to zero over the last
    `decay_fraction` of the run, "cosine" follows half a cosine to zero, "constant" holds.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "constant":
        return warmup
    if schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * step / steps))
    decay_steps = max(1.0, steps * decay_fraction)
    return warmup * min(1.0, (steps - step) / decay_steps)
