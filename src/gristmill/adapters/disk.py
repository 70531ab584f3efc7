"""Layers as a family's files name them: one of a file may hold the rows of several of the network's.

Phi-3's qkv_proj is q_proj, k_proj and v_proj in one; GPT-NeoX's has them interleaved head by head; GPT-2's is
transposed. For LoRA only the output rows matter: B and DoRA's magnitudes are cut like the rows of W, and A is
shared, as in (W + B A)[rows] = W[rows] + B[rows] A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gristmill.adapters.lora import AnyLinear, Lora
from gristmill.errors import RequestError


class Rule(Protocol):
    """How parameters become tensors on disk: what `formats` has for every family."""

    @property
    def disk(self) -> tuple[str, ...]: ...
    @property
    def ours(self) -> tuple[str, ...]: ...
    @property
    def save(self) -> Callable[[list[Tensor]], list[Tensor]]: ...


@dataclass(frozen=True)
class DiskLayer:
    """Row i of the file's layer is row order[i] of the `modules`, one after the other. Sizes as of a weight."""

    name: str
    modules: tuple[str, ...]
    rows: tuple[int, ...]
    in_features: int
    order: Tensor

    @property
    def out_features(self) -> int:
        return sum(self.rows)

    def split(self, on_disk: Tensor) -> tuple[Tensor, ...]:
        """[out, …] of the file's layer -> [out, …] of each module."""
        ours = torch.empty_like(on_disk)
        ours[self.order] = on_disk
        return ours.split(self.rows)

    def join(self, ours: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(ours))[self.order]


def disk_layers(linears: Mapping[str, AnyLinear], rules: Iterable[Rule]) -> list[DiskLayer]:
    """The linear layers under their names on disk; those that no rule mentions have our name there."""
    layers, covered = [], set()
    for rule in rules:
        modules = tuple(name.removesuffix(".weight") for name in rule.ours)
        if len(rule.disk) == 1 and all(module in linears for module in modules):
            layers.append(_layer(rule.disk[0].removesuffix(".weight"), modules, linears, rule.save))
            covered.update(modules)
    rest = [module for module in linears if module not in covered]
    return layers + [_layer(module, (module,), linears, lambda t: t) for module in rest]


def _layer(
    name: str,
    modules: tuple[str, ...],
    linears: Mapping[str, AnyLinear],
    save: Callable[[list[Tensor]], list[Tensor]],
) -> DiskLayer:
    """Two columns that number the rows go through the rule, and show where every row ends up."""
    rows = tuple(linears[module].out_features for module in modules)
    numbered = torch.arange(sum(rows))[:, None].expand(-1, 2)
    (on_disk,) = save(list(numbered.split(rows)))
    order = on_disk[:, 0] if on_disk.shape == numbered.shape else on_disk[0]
    return DiskLayer(name, modules, rows, linears[modules[0]].in_features, order)


def fuse(layer: DiskLayer, loras: Sequence[Lora | None]) -> Lora:
    """The adapters of the layer's modules (None: not adapted) as one adapter of the file's layer.

    Where all have one A, as after loading, it is that A. Otherwise A is all of theirs one below the other and B
    is block-diagonal: the same numbers at the sum of the ranks.
    """
    present = [lora for lora in loras if lora is not None]
    first = present[0]
    dora = first.magnitude is not None
    if dora and len(present) < len(loras):
        raise RequestError(
            f"{layer.name} on disk is {', '.join(layer.modules)} together: a DoRA adapter must be "
            "on all of them to be saved"
        )
    shared = len(present) == len(loras) and all(
        torch.equal(lora.A, first.A) and lora.scale == first.scale for lora in present
    )
    blocks = [
        torch.zeros(rows, 0) if lora is None else lora.B.detach().cpu() * (lora.scale / first.scale)
        for lora, rows in zip(loras, layer.rows, strict=True)
    ]
    if shared:
        A, B = first.A.detach().cpu(), torch.cat(blocks)
    else:
        A = torch.cat([lora.A.detach().cpu() for lora in present])
        B = torch.block_diag(*blocks)
    magnitudes = [lora.magnitude.detach().cpu() for lora in present if lora.magnitude is not None]
    magnitude = layer.join(magnitudes) if dora else None
    return Lora(A, B[layer.order], first.scale, magnitude=magnitude)
