"""DeepSeek V3: latent attention, sigmoid routing within groups, shared experts, dense first layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gristmill.formats.families.family import Family, llama_like, llama_like_keys, moe_layers
from gristmill.formats.families.qwen3_moe import expert_rules
from gristmill.formats.keys import Keys
from gristmill.formats.rules import Rule, each, interleaved_rows, renamed
from gristmill.model import LatentConfig, ModelConfig, MoEConfig
from gristmill.model.rope import yarn_mscale


def read(keys: Keys) -> ModelConfig:
    rotary, plain = keys.count("qk_rope_head_dim", 64), keys.count("qk_nope_head_dim", 128)
    rank = keys.get("q_lora_rank") if "q_lora_rank" in keys.hf else 1536
    latent = LatentConfig(
        query_rank=None if rank is None else keys.count("q_lora_rank", 1536),
        key_value_rank=keys.count("kv_lora_rank", 512),
        value_head_dim=keys.count("v_head_dim", 128),
    )
    width = keys.count("moe_intermediate_size", 2048)
    moe = MoEConfig(
        num_experts=keys.count("n_routed_experts", keys.count("num_local_experts", 256)),
        experts_per_token=keys.count("num_experts_per_tok", 8),
        intermediate_size=width,
        scoring="sigmoid",
        normalize=keys.flag("norm_topk_prob", True),
        scale=keys.number("routed_scaling_factor", 2.5),
        num_groups=keys.count("n_group", 8),
        groups_kept=keys.count("topk_group", 4),
        shared_intermediate_size=width * keys.count("n_shared_experts", 1),
        dense_layers=tuple(
            range(min(keys.count("first_k_dense_replace", 3), keys.count("num_hidden_layers")))
        ),
    )
    rope = keys.rope(rotary)
    scale, scaling = (plain + rotary) ** -0.5, rope["rope_scaling"]
    if scaling is not None and scaling.mscale_all_dim:
        scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    bias, heads = keys.flag("attention_bias", False), keys.count("num_attention_heads")
    if keys.count("num_key_value_heads", heads) != heads:
        raise keys.error("num_key_value_heads must equal num_attention_heads in latent attention")
    keys.refuse(
        hidden_act="silu",
        rope_interleave=True,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        moe_layer_freq=1,
    )
    return llama_like(
        keys,
        "deepseek_v3",
        context=4096,
        attention_bias=bias,
        output_bias=bias,
        latent=latent,
        moe=moe,
        query_scale=scale,
        **{**rope, "rotary_dim": rotary, "head_dim": plain + rotary},
    )


def write(config: ModelConfig) -> dict[str, Any]:
    moe, latent = config.moe, config.latent
    assert moe is not None and latent is not None
    kept = llama_like_keys(config)
    for key in ("rope_parameters", "rope_scaling"):
        kept.get(key, {}).pop("partial_rotary_factor", None)  # the rotary part is rotated whole
    return {
        **kept,
        "head_dim": config.rotated,  # transformers' frequencies are made for this width
        "attention_bias": config.attention_bias,
        "q_lora_rank": latent.query_rank,
        "kv_lora_rank": latent.key_value_rank,
        "qk_rope_head_dim": config.rotated,
        "qk_nope_head_dim": config.head_dim - config.rotated,
        "v_head_dim": latent.value_head_dim,
        "rope_interleave": True,
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "moe_intermediate_size": moe.intermediate_size,
        "norm_topk_prob": moe.normalize,
        "routed_scaling_factor": moe.scale,
        "n_group": moe.num_groups,
        "topk_group": moe.groups_kept,
        "n_shared_experts": moe.shared_intermediate_size // moe.intermediate_size,
        "first_k_dense_replace": len(moe.dense_layers),
    }


def rules(config: ModelConfig) -> list[Rule]:
    """Experts as in Qwen 3, and rotary rows, which lie as pairs side by side on disk."""
    assert config.moe is not None and config.latent is not None
    apart, together = interleaved_rows(1)
    rotated = config.rotated

    def last_rows(move: Any, heads: int) -> Any:
        """`move` on the last `rotated` rows of each of `heads` stretches."""

        def moved(tensor: Tensor) -> Tensor:
            parts = [
                part
                for head in tensor.chunk(heads)
                for part in (head[:-rotated], move(head[-rotated:]))
            ]
            return torch.cat(parts)

        return moved

    found = expert_rules(config)
    for layer in moe_layers(config):
        mlp = f"model.layers.{layer}.mlp"
        found.append(renamed(f"{mlp}.gate.e_score_correction_bias", f"{mlp}.correction"))
    queries = "q_proj" if config.latent.query_rank is None else "q_b_proj"
    turned = {queries: config.num_heads, "kv_a_proj_with_mqa": 1}
    for layer in range(config.num_layers):
        for name, heads in turned.items():
            for kind in ("weight", "bias"):
                if kind == "weight" or (config.attention_bias and name == "kv_a_proj_with_mqa"):
                    full = f"model.layers.{layer}.self_attn.{name}.{kind}"
                    found.append(
                        each(full, full, last_rows(apart, heads), last_rows(together, heads))
                    )
    return found


def predicts_further(config: ModelConfig) -> str:
    """The layers behind the last, which were trained to predict one token more (multi-token prediction)."""
    return rf"model\.layers\.(?:{config.num_layers}|{config.num_layers + 1})\..*"


FAMILY = Family("deepseek_v3", "DeepseekV3ForCausalLM", read, write, rules, unused=predicts_further)
