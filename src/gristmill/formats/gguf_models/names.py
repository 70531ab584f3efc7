"""llama.cpp's names of tensors, and what it wants done to them.

The network's parameter names follow Llama, Gemma and OLMo (`model.transformer`); llama.cpp's are shorter, fuse
some projections, and for the `llama` architecture alone rotate neighbouring dimensions instead of halves.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gristmill.errors import RequestError
from gristmill.formats.rules import Rule, each, fused, interleaved_rows, renamed
from gristmill.model import ModelConfig, Transformer

# family -> llama.cpp's architecture
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
}

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.embed_positions": "position_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_IN_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.router": "ffn_gate_inp",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# Parameters that are not called weight or bias here.
_WHOLE = {
    "self_attn.sinks": "attn_sinks.weight",
    **{f"mlp.experts.{n}_proj": f"ffn_{n}_exps.weight" for n in ("gate", "up", "down")},
    **{f"mlp.experts.{n}_bias": f"ffn_{n}_exps.bias" for n in ("gate", "up", "down")},
}
_FUSED_ATTENTION = ("phi3", "gpt2", "gpt_neox")


def architecture(config: ModelConfig) -> str:
    """llama.cpp's name of the family. Raises RequestError where it has none that we write."""
    if config.family not in ARCHITECTURES:
        raise RequestError(
            f"GGUF is not supported for the family {config.family}; supported are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[config.family]


def rules(config: ModelConfig, network: Transformer) -> list[Rule]:
    """One rule for each tensor of the file, covering every parameter of the network."""
    arch = architecture(config)
    names = list(network.state_dict())
    found: list[Rule] = []
    joined: set[str] = set()
    for layer in range(config.num_layers):
        for rule in _fused(config, layer, set(names)):
            found.append(rule)
            joined.update(rule.ours)
    for name in names:
        if name not in joined:
            found.append(_single(config, arch, name))
    return found


def _single(config: ModelConfig, arch: str, name: str) -> Rule:
    disk = _disk_name(config, name)
    module = name.rpartition(".")[0]
    if arch == "llama" and module.endswith(("q_proj", "k_proj")):
        heads = config.num_heads if module.endswith("q_proj") else config.num_kv_heads
        return each(disk, name, *interleaved_rows(heads))
    if config.norm == "rms_plus_one" and name.endswith("norm.weight"):
        return each(disk, name, _minus_one, _plus_one)
    return renamed(disk, name)


def _minus_one(tensor: Tensor) -> Tensor:
    return tensor.float() - 1.0


def _plus_one(tensor: Tensor) -> Tensor:
    return tensor.float() + 1.0


def _fused(config: ModelConfig, layer: int, names: set[str]) -> list[Rule]:
    ours, disk = f"model.layers.{layer}", f"blk.{layer}"
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    found = []
    for kind in ("weight", "bias"):
        qkv = [f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv"]
        if config.family in _FUSED_ATTENTION and qkv[0] in names:
            found.append(fused(f"{disk}.attn_qkv.{kind}", qkv, (queries, keys, keys)))
    if config.family == "phi3":
        halves: Sequence[str] = [f"{ours}.mlp.{part}_proj.weight" for part in ("gate", "up")]
        found.append(fused(f"{disk}.ffn_up.weight", halves, (config.intermediate_size,) * 2))
    return found


def _disk_name(config: ModelConfig, name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{kind}"
    _, _, layer, inside = name.split(".", 3)
    if inside in _WHOLE:
        return f"blk.{layer}.{_WHOLE[inside]}"
    inside = inside.rpartition(".")[0]
    if inside == "post_attention_layernorm":
        # Llama's second norm stands before the MLP, Gemma's and OLMo's after attention.
        before_mlp = config.norm_placement == "pre" and config.family != "gpt_oss"
        short = "ffn_norm" if before_mlp else "post_attention_norm"
    else:
        short = _IN_BLOCK[inside]
    return f"blk.{layer}.{short}.{kind}"
