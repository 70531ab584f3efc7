"""Steps that would do harm: what is not finite, and spikes far outside of what the run has seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

WINDOW = 128  # steps that a spike is judged by (OLMo-core's skip-step optimizer, as are the six deviations)
DEVIATIONS = 6.0


@dataclass
class Guard:
    """Remembers the last losses and gradient norms of steps that were taken; its state is those numbers."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def verdict(self, loss: float, norm: float) -> str:
        """Why this step is bad, in words; "" when it is fine, and then it is remembered."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss {loss}, gradient norm {norm}"
        for name, value, seen in (("loss", loss, self.losses), ("gradient norm", norm, self.norms)):
            if len(seen) == WINDOW:
                usual = sum(seen) / WINDOW
                spread = math.sqrt(sum((x - usual) ** 2 for x in seen) / WINDOW)
                # A run that hardly moves has hardly a spread: below a hundredth nothing is a spike.
                if value > usual + DEVIATIONS * max(spread, 0.01 * abs(usual)):
                    return f"{name} {value:.4g}, where the last {WINDOW} steps had {usual:.4g} ± {spread:.2g}"
        self.losses = [*self.losses[1 - WINDOW :], loss]
        self.norms = [*self.norms[1 - WINDOW :], norm]
        return ""
