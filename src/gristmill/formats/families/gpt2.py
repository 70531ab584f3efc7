"""GPT-2: learned positions, LayerNorm, biases everywhere, no gate; its Conv1D weights lie transposed on disk."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family
from gristmill.formats.keys import Keys
from gristmill.formats.rules import Rule, fused, renamed, transposed
from gristmill.model import ModelConfig


def read(keys: Keys) -> ModelConfig:
    keys.refuse(
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    hidden, heads = keys.count("n_embd", 768), keys.count("n_head", 12)
    if hidden % max(heads, 1):
        raise keys.error(f"n_embd ({hidden}) must be a multiple of n_head ({heads})")
    return ModelConfig(
        family="gpt2",
        vocab_size=keys.count("vocab_size"),
        hidden_size=hidden,
        num_layers=keys.count("n_layer", 12),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=keys.count("n_inner", 4 * hidden),
        max_seq_len=keys.count("n_positions", 1024),
        positions="learned",
        qk_norm=False,
        attention_bias=True,
        output_bias=True,
        activation=keys.activation("activation_function", "gelu_new"),
        gated=False,
        mlp_bias=True,
        norm="layer",
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=keys.flag("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_seq_len,
        "activation_function": "gelu_new"
        if config.activation == "gelu_tanh"
        else config.activation,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }


def rules(config: ModelConfig) -> list[Rule]:
    found = [
        renamed("transformer.wte.weight", "model.embed_tokens.weight"),
        renamed("transformer.wpe.weight", "model.embed_positions.weight"),
    ]
    for kind in ("weight", "bias"):
        found.append(renamed(f"transformer.ln_f.{kind}", f"model.norm.{kind}"))
    for layer in range(config.num_layers):
        disk, ours = f"transformer.h.{layer}", f"model.layers.{layer}"
        for kind in ("weight", "bias"):
            matrix = kind == "weight"
            qkv = [f"{ours}.self_attn.{name}_proj.{kind}" for name in "qkv"]
            rows = (config.hidden_size,) * 3
            found.append(fused(f"{disk}.attn.c_attn.{kind}", qkv, rows, transpose=matrix))
            move = transposed if matrix else renamed
            found += [
                renamed(f"{disk}.ln_1.{kind}", f"{ours}.input_layernorm.{kind}"),
                renamed(f"{disk}.ln_2.{kind}", f"{ours}.post_attention_layernorm.{kind}"),
                move(f"{disk}.attn.c_proj.{kind}", f"{ours}.self_attn.o_proj.{kind}"),
                move(f"{disk}.mlp.c_fc.{kind}", f"{ours}.mlp.up_proj.{kind}"),
                move(f"{disk}.mlp.c_proj.{kind}", f"{ours}.mlp.down_proj.{kind}"),
            ]
    return found


FAMILY = Family("gpt2", "GPT2LMHeadModel", read, write, rules, prefix="transformer.")
