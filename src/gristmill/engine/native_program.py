"""From the network's modules to a program of native code: one operation after the other over numbered buffers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gristmill.adapters import Lora
from gristmill.adapters.resident import residents_of
from gristmill.engine.kept import CACHE_DTYPES, CacheDtype
from gristmill.kernels import (
    TYPES,
    Int8Linear,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedStack,
    array,
    extension,
)
from gristmill.model import SLIDING, Block, Linear, Transformer
from gristmill.model.attention import Attention
from gristmill.model.layers import MLP, LayerNorm, PlusOneRMSNorm, RMSNorm
from gristmill.model.moe import MoE
from gristmill.model.rope import inverse_frequencies

# The numbers of native code (src/native/kernels.h and program.h).
_NORMS = {RMSNorm: 0, PlusOneRMSNorm: 1, LayerNorm: 2}
_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "swiglu_clamped": 3}
_SCORINGS = {"softmax": 0, "softmax_chosen": 1, "sigmoid": 2}
_NO_LONG = 2**31 - 1


@dataclass(frozen=True)
class CacheMemory:
    """keys, values: uint8 [layers, blocks, bytes of a block], laid out as src/native/cache.h says."""

    keys: Tensor
    values: Tensor
    kept: CacheDtype
    block_size: int


@dataclass
class Program:
    """native: runs. head: what `native.logits` multiplies with. adapters: their numbers. kept: what must stay alive."""

    native: Any
    head: Any
    adapters: dict[str, int]
    active: str | None
    kept: list[Tensor] = field(default_factory=list)


def obstacle(network: Transformer) -> str | None:
    """What of this network native code does not know; None: nothing."""
    if type(network) is not Transformer:
        return (
            f"{type(network).__name__} may compute otherwise than the Transformer it derives from"
        )
    if network.config.latent is not None:
        return "multi-head latent attention has no native code yet"
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if not tensor.is_cpu:
            return f"{name} is on {tensor.device}"
        if tensor.dtype not in TYPES and not name.endswith((".packed", ".order")):
            return f"{name} is {tensor.dtype}"
        if not tensor.is_contiguous():
            return f"{name} is not dense"
    for name, module in network.named_modules():
        if isinstance(module, Lora) and module.magnitude is not None:
            return "DoRA adapters have no native code; merge them"
        foreign = [h for h in module._forward_hooks.values() if not _is_adapter_hook(module, h)]
        if foreign or module._forward_pre_hooks:
            return f"{name} has a hook, which only PyTorch would call"
    return None


def build(network: Transformer, layers: int, cache: CacheMemory, isa: str) -> Program:
    """The first `layers` layers over a cache."""
    return _Builder(network, cache, isa).build(layers)


class _Builder:
    """Buffers are shared by all layers: x is the residual stream, `normed` what a sublayer reads, `said` its answer."""

    def __init__(self, network: Transformer, cache: CacheMemory, isa: str) -> None:
        assert extension is not None
        config = network.config
        self.network, self.config, self.cache = network, config, cache
        self.native = extension.Program(isa)
        self.kept: list[Tensor] = [cache.keys, cache.values]
        residents = residents_of(network)
        # A merged adapter is in the weights already.
        merged = residents.merged is not None
        self.adapters = {} if merged else {name: i for i, name in enumerate(residents.configs)}
        self.active = None if merged else residents.active

        D, C = config.hidden_size, config.head_dim
        buffer = self.native.buffer
        self.x, self.normed, self.said = buffer(D), buffer(D), buffer(D)
        self.q, self.seen = buffer(config.num_heads * C), buffer(config.num_heads * C)
        self.k, self.v = buffer(config.num_kv_heads * C), buffer(config.num_kv_heads * C)
        shared = config.moe.shared_intermediate_size if config.moe else 0
        width = max(config.intermediate_size, shared)
        self.gate, self.up = buffer(width), buffer(width)
        self.low = buffer(
            max((len(m.A) for m in network.modules() if isinstance(m, Lora)), default=1)
        )
        self.spare = buffer(D)  # what experts say
        self.ordered = buffer(max(D, config.num_heads * C, width))  # inputs as codes have them

    def build(self, layers: int) -> Program:
        network, config, native = self.network, self.config, self.native
        embedding: Any = network.model.embed_tokens
        learned = config.positions == "learned"
        places = network.model.embed_positions.weight if learned else None
        native.embed(
            self.x,
            self.table(embedding),
            config.hidden_size,
            config.embedding_scale,
            self.array(places),
            0 if places is None else len(places),
        )
        ropes: dict[str, int] = {}
        for i in range(layers):
            kind = config.layer_type(i)
            if kind not in ropes:
                ropes[kind] = self.rope(kind)
            block = network.model.layers[i]
            assert isinstance(block, Block)
            self.block(block, i, ropes[kind], last=i == layers - 1)
        self.norm(network.model.norm, self.x, self.normed)
        native.result(self.normed, config.hidden_size)
        head = self.linear_spec(network.head, self.said)
        return Program(native, head, self.adapters, self.active, self.kept)

    def block(self, block: Block, layer: int, rope: int, last: bool) -> None:
        """What `Block.forward` does."""
        config, D = self.config, self.config.hidden_size
        attention, placement = block.self_attn, config.norm_placement
        assert isinstance(attention, Attention)
        if placement == "post":
            self.attend(attention, self.x, layer, rope)
        else:
            self.norm(block.input_layernorm, self.x, self.normed)
            self.attend(attention, self.normed, layer, rope)
        if last:
            self.native.keep_wanted([self.x, self.seen])
        if placement == "pre":
            if config.parallel_residual:
                self.norm(block.post_attention_layernorm, self.x, self.normed)
                self.linear(self.seen, attention.o_proj, self.x, add=True)
            else:
                self.linear(self.seen, attention.o_proj, self.x, add=True)
                self.norm(block.post_attention_layernorm, self.x, self.normed)
            self.feed_forward(block.mlp, self.normed, self.x, add=True)
            return
        self.linear(self.seen, attention.o_proj, self.said)
        self.norm(block.post_attention_layernorm, self.said, self.said)
        self.native.add(self.said, self.x, D)
        source = self.x
        if placement == "both":
            self.norm(block.pre_feedforward_layernorm, self.x, self.normed)
            source = self.normed
        self.feed_forward(block.mlp, source, self.said, add=False)
        self.norm(block.post_feedforward_layernorm, self.said, self.said)
        self.native.add(self.said, self.x, D)

    def attend(self, attention: Attention, source: int, layer: int, rope: int) -> None:
        """Queries, keys and values of `source`; what the heads see goes to `seen`."""
        config = self.config
        pairs = (attention.q_proj, self.q), (attention.k_proj, self.k), (attention.v_proj, self.v)
        self.linears(source, pairs)
        if config.qk_norm:
            per_head = config.qk_norm_over == "head"
            self.norm(attention.q_norm, self.q, self.q, config.num_heads if per_head else 1)
            self.norm(attention.k_norm, self.k, self.k, config.num_kv_heads if per_head else 1)
        sliding = config.layer_type(layer) == SLIDING
        self.native.attention(
            self.q,
            self.k,
            self.v,
            self.seen,
            rope,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            self.cache.keys[layer].data_ptr(),
            self.cache.values[layer].data_ptr(),
            CACHE_DTYPES.index(self.cache.kept),
            self.cache.block_size,
            (config.sliding_window or 0) if sliding else 0,
            config.score_scale,
            config.attention_softcap or 0.0,
            self.array(attention.sinks if config.attention_sinks else None),
        )

    def feed_forward(self, mlp: nn.Module, source: int, to: int, add: bool) -> None:
        if isinstance(mlp, MLP):
            return self.mlp(mlp, source, to, add)
        assert isinstance(mlp, MoE)
        out, beside = (self.spare, self.said) if add else (to, self.spare)
        self.native.moe(self.moe_spec(mlp, source, out))
        if mlp.moe.shared_intermediate_size:
            self.mlp(mlp.shared_experts, source, beside, add=False)
            self.native.add(beside, out, self.config.hidden_size)
        if add:
            self.native.add(out, to, self.config.hidden_size)

    def mlp(self, mlp: MLP, source: int, to: int, add: bool) -> None:
        kind, width = _ACTIVATIONS[mlp.activation], mlp.up_proj.out_features
        if mlp.gate_proj is None:
            self.linear(source, mlp.up_proj, self.up)
            self.native.activate(kind, -1, self.up, self.gate, width)
        else:
            self.linears(source, ((mlp.gate_proj, self.gate), (mlp.up_proj, self.up)))
            self.native.activate(kind, self.gate, self.up, self.gate, width)
        self.linear(self.gate, mlp.down_proj, to, add)

    def moe_spec(self, layer: MoE, source: int, out: int) -> Any:
        assert extension is not None
        moe, experts, spec = layer.moe, layer.experts, extension.Moe()
        spec.x, spec.out = source, out
        sigmoid = moe.scoring == "sigmoid"
        spec.router = self.array(layer.router.weight)
        spec.router_bias = self.array(None if sigmoid else layer.router.bias)
        spec.correction = self.array(layer.correction if sigmoid else None)
        for name in ("gate", "up", "down"):
            stack: Any = getattr(experts, f"{name}_proj")
            if isinstance(stack, QuantizedStack):
                self.kept.append(stack.packed)
                setattr(spec, f"coded_{name}", stack.native())
                spec.rounded = stack.rounded
            else:
                setattr(spec, name, self.array(stack))
            bias = getattr(experts, f"{name}_bias") if experts.has_bias else None
            setattr(spec, f"{name}_bias", self.array(bias))
        spec.activation = _ACTIVATIONS[experts.activation]
        spec.experts, spec.chosen = moe.num_experts, moe.experts_per_token
        spec.width, spec.size = moe.intermediate_size, self.config.hidden_size
        spec.scoring, spec.normalize, spec.factor = _SCORINGS[moe.scoring], moe.normalize, moe.scale
        spec.groups, spec.groups_kept = moe.num_groups, moe.groups_kept
        return spec

    def linear(self, source: int, module: nn.Module, to: int, add: bool = False) -> None:
        """to = module(source), or that added to it. What adapters say comes between the two, as in torch."""
        assert isinstance(module, Linear | Int8Linear | QuantizedLinear)
        loras = self.loras(module)
        if not add or not loras:
            return self.linears(source, ((module, to),), add)
        self.linears(source, ((module, self.said),))
        self.native.add(self.said, to, module.out_features)

    def linears(self, source: int, modules: tuple[tuple[Any, int], ...], add: bool = False) -> None:
        """Layers that read the same rows, in one loop over the threads."""
        by_order: dict[tuple[int, ...], list[Any]] = {}  # (): that of the inputs themselves
        for module, to in modules:
            order = getattr(module, "order", None)
            key = () if order is None else tuple(order.tolist())
            by_order.setdefault(key, []).append(self.linear_spec(module, to, add))
        for order, specs in by_order.items():
            if order:
                self.native.gather(source, self.ordered, order)
            self.native.linear(self.ordered if order else source, specs)
        for module, to in modules:
            loras = self.loras(module)
            if loras:
                size = module.in_features, module.out_features
                self.native.lora(source, to, self.low, *size, loras)

    def linear_spec(self, module: Any, to: int, add: bool = False) -> Any:
        assert extension is not None
        bias = self.array(getattr(module, "bias", None))
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            self.kept.append(module.packed)
            return extension.Linear(module.native(), module.rounded, bias, to, add)
        scale, address = getattr(module, "weight_scale", None), 0
        if scale is not None:
            self.kept.append(scale)
            address = scale.data_ptr()
        weight = module.weight
        return extension.Linear(self.array(weight), address, bias, *weight.shape, to, add)

    def table(self, embedding: Any) -> Any:
        assert extension is not None
        if isinstance(embedding, QuantizedEmbedding):
            self.kept.append(embedding.packed)
            return extension.Table(embedding.native())
        return extension.Table(self.array(embedding.weight), len(embedding.weight))

    def loras(self, module: nn.Module) -> dict[int, Any]:
        assert extension is not None
        return {
            self.adapters[name]: extension.Lora(
                self.array(lora.A), self.array(lora.B), len(lora.A), lora.scale
            )
            for name, lora in getattr(module, "lora", {}).items()
            if name in self.adapters
        }

    def norm(self, module: nn.Module, source: int, to: int, groups: int = 1) -> None:
        assert isinstance(module, RMSNorm | LayerNorm)
        bias = module.bias if isinstance(module, LayerNorm) else None
        weight, kind = module.weight, _NORMS[type(module)]
        arrays = self.array(weight), self.array(bias)
        self.native.norm(kind, source, to, *arrays, len(weight), groups, module.eps)

    def rope(self, kind: str) -> int:
        """Frequencies of the layers of one type; -1 where positions are learned."""
        config = self.config
        if config.positions != "rope":
            return -1
        scaling, theta = config.rope_scaling, config.rope_theta
        if kind == SLIDING and config.rope_theta_local is not None:
            scaling, theta = None, config.rope_theta_local

        def frequencies(length: int) -> tuple[list[float], float]:
            found, factor = inverse_frequencies(
                config.rotated, theta, scaling, torch.tensor([length])
            )
            return found.flatten().tolist(), factor

        near, factor = frequencies(1)
        if scaling is None or scaling.kind != "longrope":
            return self.native.rope(near, [], _NO_LONG, factor)
        switch = scaling.original_max_seq_len
        return self.native.rope(near, frequencies(switch + 1)[0], switch, factor)

    def array(self, tensor: Tensor | None) -> Any:
        if tensor is not None:
            self.kept.append(tensor)
        return array(tensor)


def _is_adapter_hook(module: nn.Module, hook: Any) -> bool:
    return getattr(hook, "__self__", None) is getattr(module, "lora", False)
