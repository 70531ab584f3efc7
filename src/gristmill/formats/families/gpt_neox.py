"""GPT-NeoX and Pythia: attention and MLP side by side, rotary positions on a part of each head, q, k and v
of a head next to each other on disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gristmill.formats.families.family import Family
from gristmill.formats.keys import Keys, rope_to_hf
from gristmill.formats.rules import Rule, renamed
from gristmill.model import ModelConfig


def read(keys: Keys) -> ModelConfig:
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    if hidden % max(heads, 1):
        raise keys.error(
            f"hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})"
        )
    bias = keys.flag("attention_bias", True)
    share = {"rotary_pct": keys.number("rotary_pct", 0.25)}
    rope = Keys({**keys.hf, **share}, keys.file).rope(hidden // heads)
    return ModelConfig(
        family="gpt_neox",
        vocab_size=keys.count("vocab_size"),
        hidden_size=hidden,
        num_layers=keys.count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=keys.count("intermediate_size"),
        max_seq_len=keys.count("max_position_embeddings", 2048),
        qk_norm=False,
        attention_bias=bias,
        output_bias=bias,
        activation=keys.activation("hidden_act", "gelu"),
        gated=False,
        mlp_bias=True,
        norm="layer",
        norm_eps=keys.number("layer_norm_eps", 1e-5),
        parallel_residual=keys.flag("use_parallel_residual", True),
        tie_embeddings=keys.flag("tie_word_embeddings", False),
        **rope,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    share = config.rotated / config.head_dim
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_seq_len,
        "attention_bias": config.attention_bias,
        "hidden_act": "gelu_new" if config.activation == "gelu_tanh" else config.activation,
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "rotary_pct": share,
        "rotary_emb_base": config.rope_theta,
        "rope_parameters": {
            **rope_to_hf(config.rope_theta, config.rope_scaling),
            "partial_rotary_factor": share,
        },
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }


def rules(config: ModelConfig) -> list[Rule]:
    heads = config.num_heads

    def apart(tensors: list[Tensor]) -> list[Tensor]:
        rows = tensors[0].unflatten(0, (heads, 3, -1))  # [head, (q, k, v), dim, …]
        return [rows[:, i].flatten(0, 1) for i in range(3)]

    def together(tensors: list[Tensor]) -> list[Tensor]:
        rows = torch.stack([tensor.unflatten(0, (heads, -1)) for tensor in tensors], dim=1)
        return [rows.flatten(0, 2)]

    found = [renamed("gpt_neox.embed_in.weight", "model.embed_tokens.weight")]
    if not config.tie_embeddings:
        found.append(renamed("embed_out.weight", "lm_head.weight"))
    for kind in ("weight", "bias"):
        found.append(renamed(f"gpt_neox.final_layer_norm.{kind}", f"model.norm.{kind}"))
    for layer in range(config.num_layers):
        disk, ours = f"gpt_neox.layers.{layer}", f"model.layers.{layer}"
        for kind in ("weight", "bias"):
            if kind == "weight" or config.attention_bias:
                qkv = tuple(f"{ours}.self_attn.{name}_proj.{kind}" for name in "qkv")
                found += [
                    Rule((f"{disk}.attention.query_key_value.{kind}",), qkv, apart, together),
                    renamed(f"{disk}.attention.dense.{kind}", f"{ours}.self_attn.o_proj.{kind}"),
                ]
            found += [
                renamed(f"{disk}.input_layernorm.{kind}", f"{ours}.input_layernorm.{kind}"),
                renamed(
                    f"{disk}.post_attention_layernorm.{kind}",
                    f"{ours}.post_attention_layernorm.{kind}",
                ),
                renamed(f"{disk}.mlp.dense_h_to_4h.{kind}", f"{ours}.mlp.up_proj.{kind}"),
                renamed(f"{disk}.mlp.dense_4h_to_h.{kind}", f"{ours}.mlp.down_proj.{kind}"),
            ]
    return found


FAMILY = Family("gpt_neox", "GPTNeoXForCausalLM", read, write, rules, prefix="gpt_neox.")
