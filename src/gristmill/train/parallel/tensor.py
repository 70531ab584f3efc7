"""Tensor and sequence parallelism (Megatron-LM: Shoeybi et al. 2019, Korthikanti et al. 2022), put on from outside.

Between the matrices activations are split along the tokens; attention and MLP gather them, work on their heads and
channels, and scatter their sums again. The vocabulary is split over embedding and head (the loss joins it).
Weights become DTensors; activations stay plain tensors wherever the model computes.
"""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle

from gristmill.model import Transformer
from gristmill.model.transformer import Block

TOKENS = Shard(1)


def apply(network: Transformer, mesh: DeviceMesh) -> None:
    """Split the network (or its part of a pipeline) over the 1-D mesh, in place."""
    model = network.model
    if model.embed_tokens is not None:
        embedding = RowwiseParallel(input_layouts=Replicate(), output_layouts=TOKENS)
        parallelize_module(model, mesh, {"embed_tokens": embedding})
    for block in model.layers:
        if block is not None:
            _split_block(cast(Block, block), mesh)
    if model.norm is not None:
        parallelize_module(model, mesh, {"norm": SequenceParallel(use_local_output=False)})
        whole = PrepareModuleOutput(output_layouts=TOKENS, desired_output_layouts=Replicate())
        parallelize_module(model, mesh, {"norm": whole})
        if not network.config.tie_embeddings:
            _split_rows(network.lm_head, mesh)


def _split_block(block: Block, mesh: DeviceMesh) -> None:
    config = block.config
    plan: dict[str, ParallelStyle] = {
        "self_attn": PrepareModuleInput(
            input_layouts=(TOKENS, None), desired_input_layouts=(Replicate(), None)
        ),
        "self_attn.o_proj": RowwiseParallel(output_layouts=TOKENS),
        "mlp": PrepareModuleInput(input_layouts=(TOKENS,), desired_input_layouts=(Replicate(),)),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=TOKENS),
    }
    plan |= {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
    if config.gated:
        plan["mlp.gate_proj"] = ColwiseParallel()
    if config.qk_norm:
        plan |= {
            f"self_attn.{name}_norm": SequenceParallel(sequence_dim=2, use_local_output=True)
            for name in "qk"
        }
    plan |= {
        name: SequenceParallel(use_local_output=True)
        for name, _ in block.named_children()
        if "layernorm" in name
    }
    parallelize_module(block, mesh, plan)


def _split_rows(head: nn.Module, mesh: DeviceMesh) -> None:
    """The head's weight by rows of the vocabulary; the loss multiplies by it and joins the parts."""
    for name, parameter in list(head.named_parameters()):
        split = distribute_tensor(parameter.data, mesh, [Shard(0)], src_data_rank=None)
        head.register_parameter(name, nn.Parameter(split))
