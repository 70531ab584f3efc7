"""What a training step computes beside matrix products, forward and backward, each in one pass of native code.

Eager PyTorch makes a dozen passes over memory of an RMSNorm and its gradient, and as many of a rotation. The native
kernels take dense fp32 or bf16 tensors on the CPU; all else goes to the twins, which are plain PyTorch. What wants no
gradient goes to the twins as well: generation and evaluation keep the bits they had.

The same bits come out for every number of threads.

Shapes: B batch, T tokens, H heads, K key-value heads, C head_dim, n rows, V vocabulary.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gristmill.kernels.linear import TYPES
from gristmill.kernels.native import extension

_TYPES = (torch.float32, torch.bfloat16)


def _share_openmp() -> None:
    """Let native code run on the threads of PyTorch's OpenMP: a second set would have to wait for the first."""
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (
        OSError,
        AttributeError,
    ):  # another OpenMP, another system: native code brings threads of its own
        return
    assert extension is not None
    extension.use_openmp(ctypes.cast(entry, ctypes.c_void_p).value)


if extension is not None:
    _share_openmp()


def _native(*tensors: Tensor, types: tuple[torch.dtype, ...] = _TYPES) -> bool:
    """Whether native code is to compute this: plain dense tensors of one dtype on the CPU, and a gradient is wanted."""
    return (
        extension is not None
        and torch.is_grad_enabled()
        and any(t.requires_grad for t in tensors)
        and all(
            type(t) in (Tensor, nn.Parameter)
            and t.is_cpu
            and t.dtype == tensors[0].dtype
            and t.is_contiguous()
            and t.numel() > 0
            for t in tensors
        )
        and tensors[0].dtype in types
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last dimension, in the dtype of x; statistics in fp32 or wider."""
    if _native(x) and _native(weight, types=(torch.float32,)):
        return _Norm.apply(x, weight, eps)  # type: ignore[return-value]
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, factor = torch.empty_like(x), torch.empty(x.shape[:-1])
        _norm(x, weight, factor, eps, None, out, None)
        ctx.save_for_backward(x, weight, factor)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, factor = ctx.saved_tensors
        assert extension is not None
        dx, dweight = torch.empty_like(x), torch.empty(extension.NORM_PARTS, len(weight))
        _norm(x, weight, factor, 0.0, dy.contiguous(), dx, dweight)
        return dx, dweight[0], None


def _norm(x: Tensor, weight: Tensor, factor: Tensor, eps: float, dy, out, dweight) -> None:
    assert extension is not None
    extension.train_norm(
        TYPES[x.dtype],
        factor.numel(),
        x.shape[-1],
        x.data_ptr(),
        weight.data_ptr(),
        factor.data_ptr(),
        eps,
        0 if dy is None else dy.data_ptr(),
        out.data_ptr(),
        0 if dweight is None else dweight.data_ptr(),
        torch.get_num_threads(),
    )


def rotate(x_BTHC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R = 2 · cos.shape[-1] of C in pairs (x[i], x[i + R/2]); cos and sin [B, T, 1, R/2]."""
    if _native(x_BTHC, cos, sin) and x_BTHC.ndim == 4 and cos.shape[:2] == x_BTHC.shape[:2]:
        return _Turn.apply(x_BTHC, cos, sin)  # type: ignore[return-value]
    return rotate_torch(x_BTHC, cos, sin)


def rotate_torch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The twin of `rotate`."""
    rotated = 2 * cos.shape[-1]
    if rotated < x.shape[-1]:
        turned = rotate_torch(x[..., :rotated], cos, sin)
        return torch.cat((turned, x[..., rotated:]), dim=-1)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(dy.contiguous(), cos, sin, True), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    assert extension is not None
    out = torch.empty_like(x)
    B, T, H, C = x.shape
    extension.train_turn(
        TYPES[x.dtype],
        B * T,
        H,
        C,
        cos.shape[-1],
        x.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        out.data_ptr(),
        back,
        torch.get_num_threads(),
    )
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020)."""
    if _native(gate, up):
        return _Swiglu.apply(gate, up)  # type: ignore[return-value]
    return F.silu(gate) * up


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        _swiglu(gate, up, None, out, None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _swiglu(gate, up, dy.contiguous(), dgate, dup)
        return dgate, dup


def _swiglu(gate: Tensor, up: Tensor, dy: Tensor | None, out: Tensor, dup: Tensor | None) -> None:
    assert extension is not None
    extension.train_swiglu(
        TYPES[gate.dtype],
        gate.numel(),
        gate.data_ptr(),
        up.data_ptr(),
        0 if dy is None else dy.data_ptr(),
        out.data_ptr(),
        0 if dup is None else dup.data_ptr(),
        torch.get_num_threads(),
    )


def attend_causally(
    q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, scale: float, first_BT: Tensor | None = None
) -> Tensor:
    """Causal attention, [B, T, H, C], without an [T, T] in memory; fp32 and native only (see `attends_causally`).

    first_BT int32: the first key that a query sees (of its document, of its window), never less than that of the query
    before; None: key 0.
    """
    return _Attend.apply(q_BTHC, k_BTKC, v_BTKC, scale, first_BT)  # type: ignore[return-value]


def attends_causally(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> bool:
    """Whether `attend_causally` takes these."""
    width = q_BTHC.shape[-1]
    return (
        _native(q_BTHC, k_BTKC, v_BTKC, types=(torch.float32,))
        and k_BTKC.shape == v_BTKC.shape
        and k_BTKC.shape[:2] == q_BTHC.shape[:2]
        and width % 16 == 0
    )


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, first: Any) -> Tensor:
        B, T, H, _ = q.shape
        out, lse = torch.empty_like(q), torch.empty(B, H, T)
        _attend(q, k, v, scale, first, out, lse)
        ctx.save_for_backward(q, k, v, out, lse, first)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, first = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        _attend(q, k, v, ctx.scale, first, out, lse, dout.contiguous(), *grads)
        return *grads, None, None


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, first, *results: Tensor) -> None:
    assert extension is not None
    B, T, H, C = q.shape
    pointers = [t.data_ptr() for t in results]
    extension.train_attend(
        B,
        T,
        H,
        k.shape[2],
        C,
        scale,
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        0 if first is None else first.data_ptr(),
        *pointers,
        *[0] * (6 - len(pointers)),
        torch.get_num_threads(),
    )


def softmax_gradient(
    logits_nV: Tensor,
    targets_n: Tensor,
    softcap: float | None,
    z_loss: float,
    gradient: bool,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of the summed loss by the logits, -log softmax at the targets [n], logsumexp [n]).

    The loss is -log softmax(capped logits)[target] + z_loss · logsumexp². The gradient has the dtype of logits and
    takes their place; without `gradient` it means nothing. Losses are fp32 (fp64 where logits are). With `group`,
    logits are this rank's share of the vocabulary, and targets count from its first (so may lie outside).
    """
    if (
        extension is None
        or group is not None
        or not logits_nV.is_cpu
        or logits_nV.dtype not in _TYPES
        or not logits_nV.is_contiguous()
    ):
        return softmax_gradient_torch(logits_nV, targets_n, softcap, z_loss, gradient, group)
    n, V = logits_nV.shape
    if n and not 0 <= int(targets_n.min()) <= int(targets_n.max()) < V:
        raise IndexError(f"targets must be tokens below {V}")
    targets_n = targets_n.contiguous()
    loss_n, lse_n = torch.empty(2, n).unbind()
    extension.train_loss(
        TYPES[logits_nV.dtype],
        n,
        V,
        logits_nV.data_ptr(),
        targets_n.data_ptr(),
        softcap or 0.0,
        z_loss,
        gradient,
        loss_n.data_ptr(),
        lse_n.data_ptr(),
        torch.get_num_threads(),
    )
    return logits_nV, loss_n, lse_n


def softmax_gradient_torch(
    logits_nV: Tensor,
    targets_n: Tensor,
    softcap: float | None,
    z_loss: float,
    gradient: bool,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The twin of `softmax_gradient`."""
    wide = torch.promote_types(logits_nV.dtype, torch.float32)
    x = logits_nV.to(wide)
    bent = None
    if softcap is not None:
        bent = torch.tanh(x / softcap)
        x = softcap * bent
    most = x.amax(-1)
    if group is not None:
        dist.all_reduce(most, dist.ReduceOp.MAX, group)
    here = (targets_n >= 0) & (targets_n < x.shape[-1])
    index = torch.where(here, targets_n, 0)[:, None]
    at_target = torch.where(here, x.gather(1, index).squeeze(1) - most, 0)
    shares = x.sub_(most[:, None]).exp_()
    sums = torch.stack((shares.sum(-1), at_target))
    if group is not None:
        dist.all_reduce(sums, group=group)
    total, at_target = sums
    lse = total.log() + most
    if gradient:
        factor = 1 + 2 * z_loss * lse
        shares *= (factor / total)[:, None]
        shares.scatter_add_(1, index, -here.to(wide)[:, None])
        if bent is not None:
            shares *= 1 - bent.square_()
    return shares.to(logits_nV.dtype), total.log() - at_target, lse
