"""One step looked at from inside: what flows through the network row by row, and where it stops being finite.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gristmill.model import Transformer
from gristmill.train.parallel.leaves import Leaf
from gristmill.train.parallel.spread import Rows


@dataclass
class Flow:
    """Largest magnitudes by place, in the order in which the places were passed; a place that saw NaN or infinity
    has one of them. A place is a module's name with " input" or " output"."""

    sizes: dict[str, float] = field(default_factory=dict)

    def see(self, place: str, tensor: Tensor) -> None:
        self.add(place, float(tensor.detach().abs().max()) if tensor.numel() else 0.0)

    def add(self, place: str, size: float) -> None:
        seen = self.sizes.get(place, 0.0)
        self.sizes[place] = seen if seen != seen else size if size != size else max(seen, size)

    @property
    def first_bad(self) -> str:
        """The first place that saw what is not finite, or ""."""
        return next((place for place, size in self.sizes.items() if not _finite(size)), "")

    def jump_from(self, usual: Flow) -> tuple[str, float]:
        """The place whose size grew by the largest factor beside a usual flow, and the factor."""
        factors = {
            place: size / usual.sizes[place]
            for place, size in self.sizes.items()
            if usual.sizes.get(place, 0.0) > 0 and _finite(size)
        }
        return max(factors.items(), key=lambda item: item[1], default=("", 1.0))


@dataclass(frozen=True)
class Row:
    """loss: nats a target, 0 without targets. norm: of the gradient of the row's summed loss."""

    loss: float
    targets: int
    norm: float
    bad_forward: str  # the first place that was not finite, or ""
    bad_backward: str  # the same of gradients, on their way back

    @property
    def sound(self) -> bool:
        return not (self.bad_forward or self.bad_backward)


@dataclass(frozen=True)
class Examined:
    """rows: of the batch, in order. bad_gradients: parameters, by name. norm: of the step's gradient."""

    rows: list[Row]
    forward: Flow
    loss: float
    norm: float
    bad_gradients: list[str]

    @property
    def finite(self) -> bool:
        return _finite(self.loss) and _finite(self.norm)


def examine(
    network: Transformer, leaves: list[Leaf], objective: Any, batch: Rows, dtype: torch.dtype
) -> Examined:
    """Forward and backward, a row at a time. Leaves no gradients."""
    forward, rows = Flow(), []
    total, targets = 0.0, 0
    sums = [torch.zeros_like(leaf.local, dtype=torch.float64) for leaf in leaves]
    for row in rows_of(batch, leaves[0].local.device):
        there, back = Flow(), Flow()
        with _listening(network, there, back):
            loss, count, _ = objective.loss(network, row, dtype)
            loss.backward()
        nats = float(loss.detach())
        squares = 0.0
        for leaf, so_far in zip(leaves, sums, strict=True):
            if leaf.local.grad is not None:
                grad = leaf.local.grad.double()
                squares += float(grad.square().sum())
                so_far += grad
            leaf.local.grad = None
        rows.append(Row(nats / max(1, count), count, squares**0.5, there.first_bad, back.first_bad))
        total, targets = total + nats, targets + count
        for place, size in there.sizes.items():
            forward.add(place, size)
    bad = [
        leaf.name
        for leaf, grad in zip(leaves, sums, strict=True)
        if not bool(torch.isfinite(grad).all())
    ]
    squares = sum(float(grad.square().sum()) for grad in sums)
    targets = max(1, targets)
    return Examined(rows, forward, total / targets, squares**0.5 / targets, bad)


@torch.no_grad()
def mean_loss(network: Transformer, objective: Any, batch: Rows, dtype: torch.dtype) -> float:
    """Nats a target of a batch, a row at a time."""
    device = next(network.parameters()).device
    made = [objective.loss(network, row, dtype)[:2] for row in rows_of(batch, device)]
    return sum(float(loss) for loss, _ in made) / max(1, sum(count for _, count in made))


@torch.no_grad()
def token_losses(network: Transformer, row: Rows, dtype: torch.dtype) -> Tensor:
    """Nats of every token of one row, [T], 0 where nothing is to be predicted."""
    hidden = network.hidden(
        row.tokens, positions_BT=row.positions, segments_BT=row.segments, dtype=dtype
    )
    logits_TV = network.logits(hidden)[0]
    return F.cross_entropy(logits_TV, row.targets[0], ignore_index=-100, reduction="none")


def rows_of(batch: Rows, device: torch.device) -> list[Rows]:
    """A batch as batches of one row."""

    def row(number: int) -> Rows:
        return tree_map(
            lambda t: t[number : number + 1].to(device) if isinstance(t, Tensor) else t, batch
        )

    return [row(number) for number in range(len(batch.tokens))]


def bad_tensors(named: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all())]


@contextmanager
def _listening(network: nn.Module, forward: Flow, backward: Flow) -> Iterator[None]:
    def before(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            for tensor in given:
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    forward.see(f"{name} input", tensor)

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, given: Any, made: Any) -> None:
            if isinstance(made, Tensor) and made.is_floating_point():
                forward.see(f"{name} output", made)
                if made.requires_grad:
                    made.register_hook(lambda grad: backward.see(f"{name} output", grad))

        return hook

    handles = []
    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(size: float) -> bool:
    return abs(size) < float("inf")  # False of NaN too
