"""Quantized tensors of a GGUF file as layers that run on them, where the network holds them row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gristmill.errors import RequestError
from gristmill.formats.gguf import GGUFFile, is_finite
from gristmill.formats.rules import Rule
from gristmill.kernels import CODINGS, STRIP, QuantizedEmbedding, QuantizedLinear, QuantizedStack
from gristmill.model import Embedding, Linear, Transformer, meta_network


def put_coded(network: Transformer, file: GGUFFile, rules: Sequence[Rule]) -> set[str]:
    """Put quantized layers in place of the linear layers, embeddings and stacks of experts that the file holds in a
    type which has a kernel; returns the tensors that are done with. Others are left to be widened.

    Raises RequestError, naming file and tensor, for scales that are not finite.
    """
    done: set[str] = set()
    shapes = {
        name: tensor.shape for name, tensor in meta_network(network.config).state_dict().items()
    }
    for rule in rules:
        (name,) = rule.disk
        info = file.tensors.get(name)
        if info is None or info.type.name not in CODINGS:
            continue
        rows = _rows(rule, info.shape)
        places = [_Place(network, ours, info.type.name) for ours in rule.ours]
        expected = [
            (*shapes[ours][:-2], len(r), info.shape[-1])
            for ours, r in zip(rule.ours, rows, strict=False)
        ]
        if [tuple(shapes[ours]) for ours in rule.ours] != expected or not all(
            p.fits for p in places
        ):
            continue  # `fill` widens it, or finds what is wrong with it
        raw = file.raw(name)
        if not is_finite(raw, info.type):
            raise RequestError(
                f"{file.path}: the tensor {name} has scales that are NaN or infinity"
            )
        blocks = torch.from_numpy(raw)
        for place, chosen in zip(places, rows, strict=True):
            place.put(blocks if blocks.ndim == 3 else _taken(blocks, chosen))
        del raw, blocks
        file.release(name)
        done.add(name)
    return done


class _Place:
    """Where a parameter is, and what may stand there instead."""

    def __init__(self, network: nn.Module, parameter: str, type: str) -> None:
        self.type = type
        module, _, self.name = parameter.rpartition(".")
        self.parent = network.get_submodule(module)
        self.old = getattr(self.parent, self.name)
        if self.name == "weight":
            self.old, (outer, _, self.name) = self.parent, module.rpartition(".")
            self.parent = network.get_submodule(outer)

    @property
    def fits(self) -> bool:
        if isinstance(self.old, nn.Module):
            return isinstance(self.old, Linear | Embedding) and self.name != "embed_positions"
        return self.old.ndim == 3 and self.old.shape[1] % STRIP == 0

    def put(self, blocks: Tensor) -> None:
        if isinstance(self.old, Linear):
            made: nn.Module = QuantizedLinear.from_blocks(self.type, blocks, bias=self.old.bias)
        elif isinstance(self.old, Embedding):
            made = QuantizedEmbedding.from_blocks(self.type, blocks)
        else:
            delattr(self.parent, self.name)
            made = QuantizedStack.from_blocks(self.type, blocks.flatten(0, 1), parts=len(blocks))
        setattr(self.parent, self.name, made)


def _rows(rule: Rule, shape: tuple[int, ...]) -> list[Tensor]:
    """Which rows of the tensor on disk each parameter has; of a stack, of every matrix. Nothing where the rule does
    more than to move rows of a matrix."""
    if len(shape) == 3:
        return [torch.arange(shape[1])] if len(rule.ours) == 1 else []
    moved = rule.load([torch.arange(shape[0])[:, None]])
    return [m[:, 0] for m in moved if m.shape[1:] == (1,)]


def _taken(blocks: Tensor, rows: Tensor) -> Tensor:
    start = int(rows[0])
    if torch.equal(rows, torch.arange(start, start + len(rows))):
        return blocks[start : start + len(rows)]
    return blocks[rows]
