"""Learning rates as pure functions: of the step, and of the width that they were tuned at (muP)."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["wsd", "linear", "cosine", "constant"]


def lr_scale(
    step: int, steps: int, *, schedule: Schedule, warmup_steps: int, decay_fraction: float
) -> float:
    """The factor in (0, 1] on the peak learning rate at `step` (0-based) of `steps`.

    Linear warmup over `warmup_steps`, times what follows: "wsd" holds and decays linearly to zero over the last
    `decay_fraction` of the run, "linear" falls in a line over all of it, "cosine" in half a cosine, "constant"
    holds.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "constant":
        return warmup
    if schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * step / steps))
    decay_steps = steps if schedule == "linear" else max(1.0, steps * decay_fraction)
    return warmup * min(1.0, (steps - step) / decay_steps)


def for_width(base: int, width: int, optimizer: Literal["muon", "adamw"]) -> dict[str, float]:
    """Factors on settings tuned at width `base` that keep them right at `width` (muP).

    The keys are those of OptimConfig; multiply. Adam's steps do not shrink with the gradient, and what they add to
    an activation sums up coherently over the inputs: so rates of matrices with many inputs fall as 1/width (Yang et
    al. 2022, "Tensor Programs V", table 3). The product of rate and decay stays (Wang & Aitchison 2024). Muon's
    step has a spectral norm of √(outputs / inputs) by itself, which is what muP asks for (Yang, Simon & Bernstein
    2023, "A spectral condition for feature learning"): only the head, which is AdamW's, is changed.
    The widths in a network must grow together: heads by their number, at one head_dim, and the feed-forward part.
    `gristmill.model.init.narrow_head` is the other half of it. Depth is not dealt with: what writes into the
    residual stream begins at zero, so no initial scale could depend on it.
    """
    narrower = base / width
    if optimizer == "muon":
        return {"lr_head": narrower}
    return {"lr_head": narrower, "lr_peak": narrower, "weight_decay": 1 / narrower}
