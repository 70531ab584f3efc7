"""Cross-entropy of a linear head without the logits of all rows: Σ -log softmax(h Wᵀ)[target].

The gradient is computed in the forward pass, chunk by chunk, so that the logits of one chunk are alive at a time and
[N, V] never exists (Wijmans et al. 2024, "Cut your losses"; Liger Kernel). The gradient of the weights is summed over
chunks in fp32.

Shapes: N rows, n rows of a chunk, D hidden_size, V vocabulary (of this rank, where it is shared out).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from gristmill.kernels.training import softmax_gradient

_CHUNK = 512  # rows: the products lose nothing, and 512 · V logits are less than most layers keep


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    ignore: int = -100,
    chunk: int = _CHUNK,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """(summed loss with z-loss, summed loss without), scalars in fp32; only the first has a gradient.

    hidden [N, D] and weight [V, D] in any floating dtypes: products are in hidden's, softmax and sums in fp32 (fp64
    where hidden is). targets int64 [N]; rows whose target is `ignore` count for nothing. `softcap` bends logits into
    ±softcap (Gemma 2). z-loss is z_loss · Σ logsumexp² (PaLM). `bias` is [V].

    `group`: the vocabulary is shared out. weight and bias are this rank's rows [rank · V, (rank + 1) · V) of all;
    hidden, targets and results are the same on every rank, and so is hidden's gradient.
    """
    kept = (targets_N != ignore).nonzero().squeeze(1)
    if len(kept) < len(targets_N):
        hidden_ND, targets_N = hidden_ND[kept], targets_N[kept]
    tensors = (hidden_ND, weight_VD, bias)
    settings = (targets_N, softcap, z_loss, chunk, group)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Loss.apply(*tensors, *settings)  # type: ignore[return-value]
    sums, _ = _loss(tensors, settings, (False, False, False))
    return sums


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        sums, gradients = _loss(args[:3], args[3:], ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(sums[1])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if g is None else g * grads[0].to(g.dtype) for g in ctx.saved_tensors]
        return *scaled, None, None, None, None, None


def _loss(
    tensors: tuple[Tensor, Tensor, Tensor | None],
    settings: tuple[Tensor, float | None, float, int, dist.ProcessGroup | None],
    wanted: tuple[bool, ...],
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, ...]]:
    """The two sums, and the gradients of the first by those of `tensors` that are `wanted`."""
    hidden_ND, weight_VD, bias_V = tensors
    targets_N, softcap, z_loss, chunk, group = settings
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    weight = weight_VD.detach().to(hidden_ND.dtype)
    bias = None if bias_V is None else bias_V.detach().to(hidden_ND.dtype)
    first = 0 if group is None else dist.get_rank(group) * len(weight)
    total, plain = hidden_ND.new_zeros(2, dtype=wide).unbind()
    d_hidden = torch.empty_like(hidden_ND) if wanted[0] else None
    d_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
    d_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None
    for start in range(0, len(hidden_ND), chunk):
        rows = slice(start, start + chunk)
        hidden_nD = hidden_ND[rows].detach()
        logits_nV = torch.nn.functional.linear(hidden_nD, weight, bias)
        targets_n = targets_N[rows] - first
        d_logits, loss_n, lse_n = softmax_gradient(
            logits_nV, targets_n, softcap, z_loss, any(wanted), group
        )
        plain += loss_n.sum()
        total += loss_n.sum() + z_loss * lse_n.square().sum()
        if d_hidden is not None:
            torch.mm(d_logits, weight, out=d_hidden[rows])
        if d_weight is not None:
            _accumulate(d_weight, d_logits.t(), hidden_nD)
        if d_bias is not None:
            d_bias += d_logits.sum(0, dtype=wide)
    if d_hidden is not None and group is not None:
        dist.all_reduce(d_hidden, group=group)
    gradients = (
        d_hidden,
        None if d_weight is None else d_weight.to(weight_VD.dtype),
        None if d_bias is None or bias_V is None else d_bias.to(bias_V.dtype),
    )
    return (total, plain), gradients


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, whatever the dtype of a and b."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
