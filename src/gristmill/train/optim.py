"""The optimizer: Muon for hidden matrices, AdamW for everything else, stepped together.

Muon (Jordan 2024): momentum, then the update is replaced by a matrix of the same singular vectors with
singular values near one, found by Newton-Schulz iteration. Matrices of one shape are stacked and iterated
in one batched product. The iteration runs in the dtype that is fast on the machine (`dtype`): bf16 matmul
without hardware support is 50 times slower than fp32, which is why torch.optim.Muon's fixed bf16 is not used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from gristmill.stage import StageConfig
from gristmill.train.compute import ComputeDtype
from gristmill.train.schedule import Schedule

# Quintic coefficients tuned for slope at zero; singular values end in about [0.3, 1.2], not at 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class OptimConfig(StageConfig):
    """How the weights move. Learning rates are peaks; the schedule scales both."""

    optimizer: Literal["muon", "adamw"] = (
        "muon"  # of the hidden matrices; the rest is always AdamW's
    )
    lr_peak: NonNegativeFloat = 0.02  # of the hidden matrices
    # Factor on lr_peak for attention in the first two layers, where the heads that copy are (wiring.py). Muon moves
    # every direction of a matrix alike, which wipes out heads that work already; below 1 they stay. Pretraining
    # heeds it after a warm start only.
    lr_copying: NonNegativeFloat = 1.0
    lr_embedding_peak: NonNegativeFloat = 0.001  # of embeddings, norms and head
    # Decay is of the hidden matrices alone.
    weight_decay: NonNegativeFloat = 0.0
    schedule: Schedule = "wsd"
    warmup_steps: NonNegativeInt = 20
    decay_fraction: NonNegativeFloat = 0.6  # share of the run over which "wsd" falls to zero
    clip_grad_norm: PositiveFloat = 1.0
    compute_dtype: ComputeDtype = "auto"


def orthogonalize(stack: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Newton-Schulz iteration on [N, rows, columns] matrices; each result has singular values near one."""
    a, b, c = NEWTON_SCHULZ
    x = stack.to(dtype)
    transposed = x.shape[-2] > x.shape[-1]
    if transposed:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if transposed else x).to(stack.dtype)


class Muon(torch.optim.Optimizer):
    """lr is the spectral size of a step: the update is scaled by sqrt(max(1, rows / columns)).

    Weight decay is decoupled: w <- w (1 - lr · weight_decay) before the update.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, steps=steps)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                momenta = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    momenta.append(state["momentum"])
                grads = [p.grad for p in parameters if p.grad is not None]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
                updates = orthogonalize(torch.stack(nesterov), group["steps"], self.dtype)
                if group["weight_decay"]:
                    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-scale)


def build_optimizers(
    network: nn.Module, config: OptimConfig, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Muon (or AdamW) for the hidden matrices and AdamW for embeddings, head and norms.

    AdamW is PyTorch's fused one; its state exists from the start, so that a
    checkpoint can be loaded into it before the first step.
    """
    copying, others, rest = [], [], []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:  # the base under an adapter
            continue
        hidden = parameter.ndim == 2 and "embed_" not in name and "lm_head" not in name
        early = "layers.0.self_attn" in name or "layers.1.self_attn" in name
        (rest if not hidden else copying if early else others).append(parameter)
    matrices = [
        {"params": copying, "lr": config.lr_peak * config.lr_copying},
        {"params": others, "lr": config.lr_peak},
    ]
    adamw: dict[str, Any] = dict(betas=(0.9, 0.95), eps=1e-10, fused=True)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.lr_embedding_peak, weight_decay=0.0, **adamw)
    ]
    if config.optimizer == "muon":
        optimizers.append(Muon(matrices, weight_decay=config.weight_decay, dtype=dtype))
    else:
        optimizers.append(torch.optim.AdamW(matrices, weight_decay=config.weight_decay, **adamw))
    for optimizer in optimizers:
        _create_state(optimizer)
    return optimizers


def _create_state(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if isinstance(optimizer, Muon):
                state["momentum"] = torch.zeros_like(parameter)
            else:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
