"""Quantized tensors of a GGUF file as layers that run on them, where the network holds them row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gristmill.formats.gguf import GGUFFile
from gristmill.formats.quantized.rows import row_order
from gristmill.formats.rules import Rule
from gristmill.kernels import CODINGS, STRIP, QuantizedEmbedding, QuantizedLinear, QuantizedStack
from gristmill.model import Embedding, Linear, Transformer


def put_coded(network: Transformer, file: GGUFFile, rules: Sequence[Rule]) -> set[str]:
    """Put quantized layers in place of the linear layers, embeddings and stacks of experts that the file holds in a
    type which has a kernel; returns the tensors that are done with. Others are left to be widened.

    Raises RequestError, naming file and tensor, for scales that are not finite.
    """
    done: set[str] = set()
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for rule in rules:
        (name,) = rule.disk
        info = file.tensors.get(name)
        if info is None or info.type.name not in CODINGS:
            continue
        mine = [shapes[ours] for ours in rule.ours]
        stack = len(mine) == 1 and len(mine[0]) == 3
        moved = None if stack else row_order(rule, mine)
        whole = tuple(mine[0]) if stack else (sum(shape[0] for shape in mine), mine[0][-1])
        places = [_Place(network, ours, info.type.name) for ours in rule.ours]
        movable = stack or (moved is not None and not moved.transposed)
        if info.shape != whole or not movable or not all(place.fits for place in places):
            continue  # `fill` widens it, or finds what is wrong with it
        blocks = torch.from_numpy(file.checked(name))
        if moved is not None and moved.order is not None:
            blocks = blocks[torch.argsort(moved.order)]
        heights = [len(blocks)] if stack else [shape[0] for shape in mine]
        for place, part in zip(places, blocks.split(heights), strict=True):
            place.put(part)
        del blocks, part
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
