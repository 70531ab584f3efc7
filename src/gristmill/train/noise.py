"""The gradient noise scale: how many tokens a batch may have before more of them stop paying off.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1. With G the true gradient and Σ the
covariance of one token's, a mean over b tokens has E|g_b|² = |G|² + tr(Σ)/b. A step's micro-batches and their sum give
that at two sizes, so both unknowns. B_simple = tr(Σ)/|G|²: far below it, twice the batch is worth two steps; far
above, one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def estimate(
    small_square: float, big_square: float, small: float, big: float
) -> tuple[float, float]:
    """Unbiased (|G|², tr(Σ)) from the mean |g|² of gradients over `small` examples and that over `big` of them.

    The gradients are means over their examples. One step's |G|² may well be negative: divide sums over many steps.
    """
    square = (big * big_square - small * small_square) / (big - small)
    trace = (small_square - big_square) / (1 / small - 1 / big)
    return square, trace


class NoiseMeter:
    """Sums both estimates over steps. Sees each micro-batch's gradient as what a backward pass adds to `.grad`.

    For plain parameters of one process; keeps one more copy of the gradients. Micro-batches are taken to have the
    same number of targets. Tokens of a window are not independent, so the noise of a token is that of its window
    shared out.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._before: dict[int, Tensor] = {}
        self._squares: list[Tensor] = []
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._added)
        self.forget()

    def forget(self) -> None:
        """Begin new sums."""
        self.square = self.trace = 0.0

    def _added(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        before = self._before.get(id(parameter))
        added = parameter.grad if before is None else parameter.grad - before
        self._squares.append(added.detach().float().square().sum())
        self._before[id(parameter)] = parameter.grad.detach().clone()

    def end_step(self, targets: int, micro_batches: int, *, keep: bool = True) -> None:
        """After the backward passes of a step, whose gradients are sums over `targets`, and before they are scaled."""
        squares, self._squares = self._squares, []
        self._before.clear()
        if not keep or not squares:
            return
        small = targets / micro_batches
        sums = [
            p.grad.detach().float().square().sum() for p in self._parameters if p.grad is not None
        ]
        small_square = float(torch.stack(squares).sum()) / micro_batches / small**2
        big_square = float(torch.stack(sums).sum()) / targets**2
        square, trace = estimate(small_square, big_square, small, targets)
        self.square += square
        self.trace += trace

    @property
    def tokens(self) -> float | None:
        """B_simple, in what the targets count; None while the noise hides the gradient."""
        return self.trace / self.square if self.square > 0 and self.trace > 0 else None
