"""Grids of whole numbers over groups of weights, and rounding to the nearest point of them.

Two grids, both on unsigned codes: symmetric (zero in the middle, GPTQ's "sym": 2·absmax/(2^b − 1) a step) and
asymmetric (from the least weight to the largest, 0 always on the grid). A scale is rounded to the dtype it is
stored in *before* codes are chosen, so a file holds exactly what was measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gristmill.errors import RequestError, WorkError
from gristmill.kernels.codes import Codes

# GPTQ's search for a narrower range (`Quantizer.find_params` with mse): 80 ranges down to a fifth, |error|^2.4.
_SHRINKS = [1 - step / 100 for step in range(80)]
_NORM = 2.4


def group_width(width: int, group: int | None, name: str) -> int:
    """The group in inputs; None: one a row. Raises RequestError where it does not divide `width`."""
    group = width if group is None else group
    if group < 1 or width % group:
        raise RequestError(
            f"{name} has {width} inputs, which groups of {group} do not divide; choose a group that does, or one a row"
        )
    return group


def fit(
    groups: Tensor,
    bits: int,
    symmetric: bool,
    scale_dtype: torch.dtype,
    shrink: Tensor | None = None,
    name: str = "the weight",
) -> tuple[Tensor, Tensor]:
    """The grids of fp32 groups [..., group]: scales in `scale_dtype` and zeros uint8, both [...].

    shrink [...]: the range is cut at this fraction of the group's largest magnitude. A group of zeros has scale 1.
    Raises WorkError where a scale is too large for `scale_dtype` or a weight is not finite.
    """
    top = 2**bits - 1
    low, high = torch.aminmax(groups, dim=-1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    absmax = torch.maximum(-low, high)
    if shrink is not None:
        absmax = shrink * absmax
        low, high = torch.maximum(low, -absmax), torch.minimum(high, absmax)
    span = 2 * absmax if symmetric else high - low
    scale = (span / top).to(scale_dtype)
    if not bool(scale.isfinite().all()):
        if not bool(span.isfinite().all()):
            raise WorkError(f"{name} holds NaN or infinity and cannot be quantized")
        largest = absmax.max().item()
        raise WorkError(
            f"{name} holds a value of {largest:.3g}, whose scale is too large for {scale_dtype}"
        )
    # Too small for the dtype is not zero: its smallest number is nearer.
    tiny = torch.finfo(scale_dtype).smallest_normal * torch.finfo(scale_dtype).eps
    scale = scale.clamp(min=tiny).masked_fill(span == 0, 1)
    if symmetric:
        zero = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.uint8)
    else:
        zero = (-low / scale.float()).round().clamp(0, top).to(torch.uint8)
    return scale, zero


def encode(groups: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., group] of fp32 groups on grids [...]: the nearest, half to even."""
    q = groups / scale.float()[..., None]
    return q.round_().add_(zero[..., None]).clamp_(0, 2**bits - 1).to(torch.uint8)


@torch.no_grad()
def round_to_nearest(
    weight: Tensor,
    *,
    bits: int = 4,
    group: int | None = 128,
    symmetric: bool = True,
    scale_dtype: torch.dtype = torch.float16,
    shrink: Tensor | None = None,
    name: str = "the weight",
) -> Codes:
    """weight [out, in] -> Codes, each group of inputs on a grid of its own (None: one grid a row).

    shrink [out, groups]: as in `fit`. Raises RequestError where `group` does not divide the inputs, and
    WorkError as `fit`; both say `name`.
    """
    out, width = weight.shape
    group = group_width(width, group, name)
    groups = weight.float().reshape(out, -1, group)
    scale, zero = fit(groups, bits, symmetric, scale_dtype, shrink, name)
    return Codes(encode(groups, scale, zero, bits).view(out, width), scale, zero, bits, group)


@torch.no_grad()
def search_shrink(
    groups: Tensor, bits: int, symmetric: bool, scale_dtype: torch.dtype = torch.float16
) -> Tensor:
    """For fp32 groups [..., group] the fractions of their range [...] that lose least, as GPTQ's option `mse` does."""
    best = torch.full(groups.shape[:-1], float("inf"), device=groups.device)
    chosen = torch.ones_like(best)
    for shrink in _SHRINKS:
        scale, zero = fit(groups, bits, symmetric, scale_dtype, torch.full_like(best, shrink))
        q = encode(groups, scale, zero, bits)
        back = (q.float() - zero[..., None]) * scale.float()[..., None]
        error = back.sub_(groups).abs_().pow_(_NORM).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        chosen = torch.where(better, shrink, chosen)
    return chosen
