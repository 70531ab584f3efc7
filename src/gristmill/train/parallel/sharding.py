"""A network put on a mesh: split matrices, ring, experts, recomputation, compilation, shards, in that order."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from gristmill.model import Transformer
from gristmill.model.init import drawn, identity_of
from gristmill.model.moe import MoE
from gristmill.train.parallel import experts, ring, tensor
from gristmill.train.parallel.layout import Layout, Mesh
from gristmill.train.parallel.leaves import leaves

Recompute = Literal["none", "selective", "full"]


def apply(
    network: Transformer,
    mesh: Mesh | None,
    *,
    dtype: torch.dtype,
    recompute: Recompute = "none",
    compile: bool = False,
) -> list[Transformer]:
    """The network, or this process's stages of a pipeline, spread over the mesh; in place where there is no pipeline.

    dtype: of activations, and of what FSDP gathers.
    The network may be on the meta device: fill what comes back with `initialize`.
    """
    layout = mesh.layout if mesh else Layout()
    parts = [network]
    if mesh is not None and layout.pp > 1:
        from gristmill.train.parallel import pipeline  # a second of imports

        mine = range(mesh.at("pp"), layout.stages, layout.pp)
        parts = [pipeline.part(deepcopy(network), stage, layout.stages) for stage in mine]
    for part in parts:
        if layout.tp > 1 and mesh:
            tensor.apply(part, mesh.dims["tp"])
        if layout.cp > 1 and mesh:
            ring.apply(part, mesh.group("cp"))
        if layout.ep > 1 and mesh:
            experts.apply(part, mesh.dims["ep"])
        for block in part.model.layers:
            if block is not None and recompute != "none":
                recompute_block(block, recompute)
            if block is not None and compile:
                block.compile()
        if mesh is not None and layout.rows * layout.cp > 1:
            _shard(part, mesh, dtype)
    return parts


@torch.no_grad()
def initialize(parts: list[Transformer], seed: int, device: torch.device) -> None:
    """Give memory to parts on the meta device, and the values that the whole network has at the same seed."""
    for part in parts:
        part.to_empty(device=device)
        for buffer in part.buffers():
            buffer.zero_()
        identity = identity_of(part.config)
        for leaf in leaves([part]):
            values = drawn(leaf.name, leaf.shape, seed, identity=identity)
            leaf.local.copy_(leaf.part(values.to(leaf.local.device)))


def recompute_block(block: nn.Module, kind: Recompute) -> None:
    """Keep less of a block for the backward pass: only its input ("full"), or also what is dear to compute again."""
    contexts = partial(create_selective_checkpoint_contexts, _what_to_keep)
    more = {"context_fn": contexts} if kind == "selective" else {}
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, **more)


_DEAR = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def _what_to_keep(
    _: object, operation: object, *arguments: object, **more: object
) -> CheckpointPolicy:
    """Matrix products and attention are kept; norms, activations and rotations are cheap and computed again."""
    return CheckpointPolicy.MUST_SAVE if operation in _DEAR else CheckpointPolicy.PREFER_RECOMPUTE


def _shard(network: Transformer, mesh: Mesh, dtype: torch.dtype) -> None:
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )

    def dims(name: str) -> DeviceMesh:
        return mesh.dims["replicas", name] if mesh.layout.replicas > 1 else mesh.dims[name]

    def shard(module: nn.Module, over: DeviceMesh) -> None:
        fully_shard(module, mesh=over, mp_policy=policy)
        assert isinstance(module, FSDPModule)
        # Gradients are sums; the trainer divides by what was counted. (gloo has no sum with a factor.)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)

    for block in network.model.layers:
        if block is None:
            continue
        if mesh.layout.ep > 1 and isinstance(block.mlp, MoE):
            shard(block.mlp.experts, dims("fsdp_experts"))
        shard(block, dims("fsdp"))
    shard(network, dims("fsdp"))
    register_fsdp_forward_method(network, "hidden")
