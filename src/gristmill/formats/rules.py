"""How tensors on disk become parameters of the network, and parameters tensors: one rule for both directions.

A rule names some tensors of a file and some parameters, with a function each way. Both functions only move
numbers (rename, split, stack, transpose, permute), so saving what was loaded gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Move = Callable[[list[Tensor]], list[Tensor]]


def _same(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


@dataclass(frozen=True)
class Rule:
    """`load` takes the tensors named `disk` to the parameters named `ours`; `save` takes them back."""

    disk: tuple[str, ...]
    ours: tuple[str, ...]
    load: Move = _same
    save: Move = _same


def renamed(disk: str, ours: str) -> Rule:
    return Rule((disk,), (ours,))


def each(disk: str, ours: str, load: Callable[[Tensor], Tensor], save: Callable[[Tensor], Tensor]):
    """One tensor each way, changed by a function."""
    return Rule((disk,), (ours,), lambda t: [load(t[0])], lambda t: [save(t[0])])


def transposed(disk: str, ours: str) -> Rule:
    """GPT-2's Conv1D stores [in, out]."""
    return each(disk, ours, lambda t: t.T, lambda t: t.T)


def fused(disk: str, ours: Sequence[str], rows: Sequence[int], transpose: bool = False) -> Rule:
    """One tensor on disk holds several parameters, one after the other along the output dimension."""
    sizes = list(rows)

    def load(tensors: list[Tensor]) -> list[Tensor]:
        whole = tensors[0].T if transpose else tensors[0]
        return list(whole.split(sizes))

    def save(tensors: list[Tensor]) -> list[Tensor]:
        whole = torch.cat(tensors)
        return [whole.T if transpose else whole]

    return Rule((disk,), tuple(ours), load, save)


def stacked(disk: Iterable[str], ours: str) -> Rule:
    """One tensor for each expert on disk, one stacked parameter here."""
    return Rule(tuple(disk), (ours,), lambda t: [torch.stack(t)], lambda t: list(t[0].unbind()))


def interleaved_rows(heads: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Rows of rotary pairs side by side (x0, x1, …) to half-split (x0, x2, … x1, x3, …) in each head, and back."""

    def load(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    def save(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    return load, save


def complete(rules: Iterable[Rule], network: nn.Module) -> list[Rule]:
    """`rules`, and the same name for every parameter that they do not mention."""
    rules = list(rules)
    mentioned = {name for rule in rules for name in rule.ours}
    rest = (name for name in network.state_dict() if name not in mentioned)
    return [*rules, *(renamed(name, name) for name in rest)]
