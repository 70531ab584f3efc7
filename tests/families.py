"""A tiny random model of every family, made and saved by transformers: the oracle of model/ and formats/."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

SHARED: dict[str, Any] = dict(
    vocab_size=400,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    # at the usual 0.02 logits are so close together that their order is chance
    initializer_range=0.08,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = dict(rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=32)

# name -> (class of the configuration, what it sets beyond SHARED)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", dict(rms_norm_eps=1e-5)),
    "llama, biases": ("LlamaConfig", dict(attention_bias=True, mlp_bias=True, head_dim=24)),
    "llama, llama3 rope": ("LlamaConfig", dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "llama, yarn": ("LlamaConfig", dict(rope_parameters=YARN)),
    "llama, linear rope": (
        "LlamaConfig",
        dict(rope_parameters=dict(rope_type="linear", rope_theta=10_000.0, factor=2.0)),
    ),
    "mistral": ("MistralConfig", dict(sliding_window=16)),
    "mistral, no window": ("MistralConfig", dict(sliding_window=None, head_dim=24)),
    "mixtral": ("MixtralConfig", dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen2": ("Qwen2Config", dict()),
    "qwen2, window": (
        "Qwen2Config",
        dict(use_sliding_window=True, sliding_window=16, max_window_layers=1),
    ),
    "qwen3": ("Qwen3Config", dict(head_dim=24)),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        dict(head_dim=24, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64),
    ),
    "qwen3_moe, some dense": (
        "Qwen3MoeConfig",
        dict(
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            norm_topk_prob=True,
            mlp_only_layers=[1],
        ),
    ),
    "gemma2": (
        "Gemma2Config",
        dict(head_dim=24, sliding_window=16, query_pre_attn_scalar=20, num_hidden_layers=3),
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        dict(head_dim=24, sliding_window=16, query_pre_attn_scalar=20, num_hidden_layers=7),
    ),
    "olmo2": ("Olmo2Config", dict()),
    "phi3": ("Phi3Config", dict()),
    "phi3, longrope": (
        "Phi3Config",
        dict(
            original_max_position_embeddings=48,
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10_000.0,
                short_factor=[1.0 + 0.1 * i for i in range(8)],
                long_factor=[1.5 + 0.5 * i for i in range(8)],
                original_max_position_embeddings=48,
            ),
        ),
    ),
    "phi3, partial rotary, window": (
        "Phi3Config",
        dict(sliding_window=16, partial_rotary_factor=0.5),
    ),
    "gpt2": ("GPT2Config", dict()),
    "gpt_neox": ("GPTNeoXConfig", dict(rotary_pct=0.25)),
    "gpt_neox, sequential": ("GPTNeoXConfig", dict(use_parallel_residual=False)),
    "gpt_oss": (
        "GptOssConfig",
        dict(
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=16,
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=150_000.0,
                factor=4.0,
                original_max_position_embeddings=32,
                beta_fast=32.0,
                beta_slow=1.0,
                truncate=False,
            ),
        ),
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        dict(
            num_key_value_heads=4,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            n_shared_experts=1,
            first_k_dense_replace=1,
            moe_intermediate_size=64,
            q_lora_rank=32,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=16,
            rope_parameters=dict(**YARN, mscale=1.0, mscale_all_dim=0.8),
        ),
    ),
    "deepseek_v3, plain queries": (
        "DeepseekV3Config",
        dict(
            num_key_value_heads=4,
            n_routed_experts=4,
            num_experts_per_tok=3,
            n_group=1,
            topk_group=1,
            n_shared_experts=2,
            first_k_dense_replace=0,
            moe_intermediate_size=32,
            q_lora_rank=None,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=24,
        ),
    ),
}


def theirs(case: str, seed: int = 0, **changes: Any) -> Any:
    """transformers' model, fp32; every 1-D parameter and correction is perturbed, so none is idle."""
    import transformers

    kind, extra = CASES[case]
    config = getattr(transformers, kind)(**{**SHARED, **extra, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            small = tensor.ndim == 1 and "inv_freq" not in name
            if small or name.endswith(("router.weight", "gate.weight", "_bias")):
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
            if tensor.ndim == 3:  # fused experts: some classes leave them at zero or uninitialized
                tensor.copy_(0.08 * torch.randn(tensor.shape, generator=generator))
    return model


@cache
def saved(case: str, root: Path) -> tuple[Any, Path]:
    """The model and the directory it was saved in; made once for each `root`."""
    model, directory = theirs(case), root / case.replace(" ", "_").replace(",", "")
    model.save_pretrained(directory)
    return model, directory
