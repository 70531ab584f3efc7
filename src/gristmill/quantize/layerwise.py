"""One decoder block after the other: calibration windows go through it, it is quantized, its output goes on.

A block is widened to fp32 (its tensors come from the mapped file), quantized stage by stage, and let go; what follows
always sees what the quantized block makes. So memory is one block, the activations of the calibration windows (in a
file where they are large), and nothing else. Each finished block is written to the work directory at once: a run that
was killed reads it back and goes on to the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.files import write_with
from gristmill.formats.safetensors import SafetensorsFile
from gristmill.kernels.codes import Codes
from gristmill.model import Block, Linear, Transformer
from gristmill.quantize.importance import Importance
from gristmill.quantize.stream import IN_MEMORY_BYTES, Stream
from gristmill.quantize.work import disk_told
from gristmill.stage import Progress, quiet

STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Linear layers of a block in the order in which they act; those of a stage have the same input."""


@dataclass
class Done:
    """What became of a block. codes: its layers' by their names in it. changed: other parameters with new values
    (norms and biases that scales were folded into). notes: numbers for the report, by layer."""

    codes: dict[str, Codes] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def apply(self, block: Block) -> None:
        """Give an fp32 block these weights."""
        state = {f"{name}.weight": codes.matrix() for name, codes in self.codes.items()}
        state |= {name: tensor.float() for name, tensor in self.changed.items()}
        block.load_state_dict(state, strict=False, assign=True)


Method = Callable[[Block, str, Stream | None], Done]
"""Quantizes one fp32 block, given its name and the stream standing before it (None where none is needed). The block
is left with the weights that it will have."""


@torch.no_grad()
def quantize_blocks(
    network: Transformer,
    method: Method,
    windows: Tensor | None,
    work: Path,
    progress: Progress = quiet,
    *,
    begun: Callable[[Stream | None, int], None] = lambda stream, left: None,
    in_memory: int = IN_MEMORY_BYTES,
) -> Iterator[tuple[int, Done]]:
    """Each block's `Done`, in order, with tensors that are views of the work directory's files.

    windows: int64 [count, length]; None for a method that looks at weights alone. begun: called before the first
    block is quantized, with the stream and the number of blocks that are not finished. The network is left as it
    was. Raises WorkError, naming the layer, where activations are not finite.
    """
    work.mkdir(parents=True, exist_ok=True)
    total = network.config.num_layers
    files = [work / f"block-{layer:04d}.safetensors" for layer in range(total)]
    stream: Stream | None = None
    if windows is not None and not all(file.is_file() for file in files):
        stream = Stream(network, windows, work, in_memory)
    begun(stream, sum(not file.is_file() for file in files))
    for layer, file in enumerate(files):
        progress(layer, total, "blocks")
        known = file.is_file()
        if not known or stream is not None:
            block = widened(network, layer)
            if not known:
                _write(file, method(block, f"model.layers.{layer}", stream))
            done = _read(file)
            if stream is not None and layer + 1 < total:
                done.apply(block)
                stream.advance(block)
            del block
        else:
            done = _read(file)
        yield layer, done
    progress(total, total, "blocks")


@torch.no_grad()
def importances(
    network: Transformer, windows: Tensor, work: Path, progress: Progress = quiet
) -> dict[str, np.ndarray]:
    """How much each input of each linear layer matters in the full-precision model: mean x², float32 [in] by name."""
    names, found = linears(network), dict[str, np.ndarray]()
    stream = Stream(network, windows, work)
    for layer in range(network.config.num_layers):
        progress(layer, network.config.num_layers, "blocks")
        block = widened(network, layer)
        seen = {s[0]: Importance(linear(block, s[0]).in_features) for s in stages(block)}
        stream.feed(block, {name: one.add for name, one in seen.items()})
        for stage in stages(block):
            prefixed = (f"model.layers.{layer}.{name}" for name in stage)
            found |= dict.fromkeys(prefixed, seen[stage[0]].mean.numpy())
        if layer + 1 < network.config.num_layers:
            stream.advance(block)
    assert found.keys() == names.keys()
    return found


def widened(network: Transformer, layer: int) -> Block:
    """A copy of a block with fp32 weights, which a method may write to."""
    with torch.device("meta"):
        block = Block(network.config, layer)
    state = network.model.layers[layer].state_dict()
    block.load_state_dict(
        {name: t.to(torch.float32, copy=True) for name, t in state.items()}, assign=True
    )
    return block.eval().requires_grad_(False)


def stages(block: Block) -> list[list[str]]:
    """The names of the block's linear layers by stage."""
    there = {name for name, module in block.named_modules() if isinstance(module, Linear)}
    return [kept for stage in STAGES if (kept := [name for name in stage if name in there])]


def linear(block: Block, name: str) -> Linear:
    found = block.get_submodule(name)
    assert isinstance(found, Linear)
    return found


def linears(network: Transformer) -> dict[str, Linear]:
    """Every linear layer of the decoder blocks that is quantized, by its name in the network.

    Raises RequestError for a mixture of experts, whose experts lie stacked in one parameter, and latent attention.
    """
    config = network.config
    if config.moe is not None:
        raise RequestError(
            f"this {config.family} is a mixture of experts, whose experts lie stacked in one tensor; layer by layer "
            "only plain linear layers are quantized. Use --method gguf, which holds experts"
        )
    if config.latent is not None:
        raise RequestError(
            f"the latent attention of {config.family} is not quantized layer by layer"
        )
    return {
        f"model.layers.{layer}.{name}": module
        for layer, block in enumerate(network.model.layers)
        for name, module in block.named_modules()
        if isinstance(module, Linear)
    }


def _write(file: Path, done: Done) -> None:
    tensors: dict[str, Tensor] = {}
    grids = {}
    for name, codes in done.codes.items():
        assert codes.order is None
        tensors |= {f"{name}:{part}": getattr(codes, part) for part in ("q", "scale", "zero")}
        grids[name] = [codes.bits, codes.group]
    tensors |= done.changed
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # One key: the library writes several in an order of its own, and equal work shall have equal bytes.
    metadata = {"done": json.dumps({"grids": grids, "notes": done.notes})}
    _save(file, tensors, metadata)


def _save(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all. Raises WorkError where the disk refuses."""
    with disk_told(file):
        write_with(file, lambda path: save_file(dict(tensors), path, metadata=metadata))


def _read(file: Path) -> Done:
    opened = SafetensorsFile.open(file)
    told = json.loads(opened.metadata["done"])
    done = Done(notes=told["notes"])
    for name, (bits, group) in told["grids"].items():
        q, scale, zero = (opened.load(f"{name}:{part}") for part in ("q", "scale", "zero"))
        done.codes[name] = Codes(q, scale, zero, bits, group)
    for name in opened.tensors:
        if ":" not in name:
            done.changed[name] = opened.load(name)
    return done
