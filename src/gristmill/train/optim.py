"""The optimizer: Muon for hidden matrices, AdamW for everything else, stepped together.

Muon (Jordan 2024): momentum, then the update is replaced by a matrix of the same singular vectors with
singular values near one, found by Newton-Schulz iteration. Matrices of one shape are stacked and iterated
in one batched product. The iteration runs in the dtype that is fast on the machine (`dtype`): bf16 matmul
without hardware support is 50 times slower than fp32, which is why torch.optim.Muon's fixed bf16 is not used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from gristmill.stage import StageConfig
from gristmill.train.compute import ComputeDtype
from gristmill.train.parallel.leaves import Leaf
from gristmill.train.schedule import Schedule

# Quintic coefficients tuned for slope at zero; singular values end in about [0.3, 1.2], not at 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class OptimConfig(StageConfig):
    """How the weights move. Learning rates are peaks; the schedule scales both."""

    HOW = frozenset({"micro_batches", "checkpoint_seconds"})

    optimizer: Literal["muon", "adamw"] = (
        "muon"  # of the hidden matrices; the rest is always AdamW's
    )
    lr_peak: NonNegativeFloat = 0.02  # of the hidden matrices
    # Factor on lr_peak for attention in the first two layers, where the heads that copy are (wiring.py). Muon moves
    # every direction of a matrix alike, which wipes out heads that work already; below 1 they stay. Pretraining
    # heeds it after a warm start only.
    lr_copying: NonNegativeFloat = 1.0
    lr_embedding_peak: NonNegativeFloat = 0.001  # of embeddings, norms and head
    # Factor on lr_embedding_peak for the head; where it is tied to the embeddings, for the last norm.
    lr_head: NonNegativeFloat = 1.0
    # Decay is of the hidden matrices alone.
    weight_decay: NonNegativeFloat = 0.0
    schedule: Schedule = "wsd"
    warmup_steps: NonNegativeInt = 20
    decay_fraction: float = Field(
        default=0.6, ge=0, le=1
    )  # share of the run over which "wsd" falls to zero
    clip_grad_norm: PositiveFloat = 1.0
    micro_batches: PositiveInt = 1  # pieces of a batch whose gradients are summed before a step
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1
    )  # above 0: the model is an average of the weights on the way
    # What to do with a step whose loss or gradient norm lies 6 standard deviations above the last 128 (guard.py).
    on_spike: Literal["skip", "rollback", "stop", "ignore"] = "skip"
    checkpoint_seconds: NonNegativeFloat = (
        15.0  # between checkpoints, at least; 0: at every row of metrics
    )
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

    Parameters are matrices, or stacks of matrices (experts). Weight decay is decoupled:
    w <- w (1 - lr · weight_decay) before the update. leaves: where the parameters are parts of larger ones, how to
    make their updates whole, since the update of a part is not the part of the update.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
        dtype: torch.dtype = torch.float32,
        leaves: Sequence[Leaf] = (),
    ) -> None:
        self.dtype = dtype
        self.leaf_of = {id(leaf.local): leaf for leaf in leaves if leaf.mesh is not None}
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, steps=steps)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    leaf = self.leaf_of.get(id(parameter))
                    mesh = leaf.mesh if leaf else None
                    alike[leaf.shape if leaf else parameter.shape, mesh].append(parameter)
            for (shape, _), parameters in alike.items():
                momenta = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    momenta.append(state["momentum"])
                grads = [p.grad for p in parameters if p.grad is not None]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
                updates = self._updates(parameters, nesterov, group["steps"])
                if group["weight_decay"]:
                    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                scale = group["lr"] * max(1.0, shape[-2] / shape[-1]) ** 0.5
                torch._foreach_add_(parameters, updates, alpha=-scale)

    def _updates(
        self, parameters: list[Tensor], nesterov: Sequence[Tensor], steps: int
    ) -> list[Tensor]:
        """The orthogonalized parts of `nesterov`, which belong to parameters of one shape on one mesh."""
        found = [self.leaf_of.get(id(p)) for p in parameters]
        spread = [leaf for leaf in found if leaf is not None]
        if not spread or (nesterov[0].ndim == 3 and not spread[0].splits_matrices):
            return list(_orthogonal(torch.stack(list(nesterov)), steps, self.dtype).unbind())
        # As many at a time as there are processes along the mesh's longest dimension: each iterates one of them, then
        # all have all. So no more than that many whole matrices are held.
        mesh = spread[0].mesh
        assert mesh is not None
        along = max(range(mesh.ndim), key=mesh.size)
        ranks, rank = mesh.size(along), mesh.get_local_rank(along)
        updates = []
        for first in range(0, len(spread), ranks):
            leaves, parts = spread[first : first + ranks], nesterov[first : first + ranks]
            wholes = [leaf.whole(part) for leaf, part in zip(leaves, parts, strict=True)]
            mine = wholes[rank] if rank < len(wholes) else torch.zeros_like(wholes[0])
            made = _orthogonal(mine[None], steps, self.dtype)[0]
            everyone = [torch.empty_like(made) for _ in range(ranks)]
            dist.all_gather(everyone, made, group=mesh.get_group(along))
            updates += [leaf.part(update) for leaf, update in zip(leaves, everyone, strict=False)]
        return updates


def _orthogonal(stack: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Of a stack of matrices, or of stacks of matrices."""
    return orthogonalize(stack.flatten(0, -3), steps, dtype).view(stack.shape)


class Optimizer:
    """Muon (or AdamW) for the hidden matrices and AdamW for embeddings, head and norms, as one.

    Its state exists from the start, so that a checkpoint can be loaded into it before the first step.
    AdamW is PyTorch's fused one.
    """

    def __init__(self, leaves: list[Leaf], config: OptimConfig, dtype: torch.dtype) -> None:
        copying, others, rest, last = [], [], [], []
        head = "lm_head." if any("lm_head." in leaf.name for leaf in leaves) else "model.norm."
        for leaf in leaves:
            name = leaf.name
            stack = leaf.parameter.ndim == 3
            outer = any(part in name for part in ("embed_", "lm_head", "router"))
            hidden = stack or (leaf.parameter.ndim == 2 and not outer)
            early = "layers.0.self_attn" in name or "layers.1.self_attn" in name
            flat = last if head in name and config.lr_head != 1 else rest
            (flat if not hidden else copying if early else others).append(leaf.local)
        matrices = [
            {"params": copying, "lr": config.lr_peak * config.lr_copying},
            {"params": others, "lr": config.lr_peak},
        ]
        matrices = [group for group in matrices if group["params"]]
        adamw: dict[str, Any] = dict(betas=(0.9, 0.95), eps=1e-10, fused=True)
        decay = config.weight_decay
        self.leaves = leaves
        self.updates = 0  # made so far
        self.kinds: list[torch.optim.Optimizer] = []
        flats = [
            {"params": rest, "lr": config.lr_embedding_peak},
            {"params": last, "lr": config.lr_embedding_peak * config.lr_head},
        ]
        flats = [group for group in flats if group["params"]]
        if flats:
            self.kinds.append(torch.optim.AdamW(flats, weight_decay=0.0, **adamw))
        if matrices and config.optimizer == "muon":
            self.kinds.append(Muon(matrices, weight_decay=decay, dtype=dtype, leaves=leaves))
        elif matrices:
            self.kinds.append(torch.optim.AdamW(matrices, weight_decay=decay, **adamw))
        self._peaks = [[group["lr"] for group in kind.param_groups] for kind in self.kinds]
        self._state: dict[int, dict[str, Tensor]] = {}
        for kind in self.kinds:
            for group in kind.param_groups:
                for parameter in group["params"]:
                    kind.state[parameter] = _empty_state(kind, parameter)
                    self._state[id(parameter)] = kind.state[parameter]

    def step(self, scale: float) -> None:
        """Move the parameters at `scale` times the peak rates, and forget their gradients."""
        for kind, peaks in zip(self.kinds, self._peaks, strict=True):
            for group, peak in zip(kind.param_groups, peaks, strict=True):
                group["lr"] = peak * scale
            kind.step()
        self.updates += 1
        self.forget_gradients()

    def forget_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.local.grad = None

    def moments(self) -> dict[str, Tensor]:
        """parameter's name.slot -> what is remembered of its gradients, spread as the parameter is. Shares memory."""
        return {
            f"{leaf.name}.{slot}": leaf.spread(value)
            for leaf in self.leaves
            for slot, value in self._state[id(leaf.local)].items()
            if slot != "step"
        }

    def resume(self, updates: int) -> None:
        """After `moments` were filled: go on as after this many updates."""
        self.updates = updates
        for state in self._state.values():
            if "step" in state:
                state["step"].fill_(updates)


def _empty_state(kind: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    if isinstance(kind, Muon):
        return {"momentum": torch.zeros_like(parameter)}
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
