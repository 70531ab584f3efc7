"""The same tiny random network here and in transformers, and `peft` adapters whose numbers are all at work."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gristmill.model import ModelConfig, Transformer

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": dict(qk_norm=True, tie_embeddings=True),
    # biases, because DoRA leaves them out of what it scales
    "llama": dict(
        qk_norm=False, tie_embeddings=False, attention_bias=True, output_bias=True, mlp_bias=True
    ),
}


def shape(family: str) -> ModelConfig:
    return ModelConfig(
        vocab_size=96,
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=80,
        max_seq_len=64,
        **FAMILIES[family],
    )


def make_pair(family: str) -> tuple[Transformer, Any]:
    """A fresh pair of networks with equal weights, fp32, in eval mode: ours and transformers'."""
    config = shape(family)
    theirs, ours = deepcopy(_theirs(family)), Transformer(config).eval()
    weights = theirs.state_dict()
    if config.tie_embeddings:
        del weights["lm_head.weight"]
    ours.load_state_dict(weights)
    return ours, theirs


@cache
def _theirs(family: str) -> Any:
    """Every 1-D parameter is perturbed, so none is idle."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    network, kind = {
        "qwen3": (Qwen3ForCausalLM, Qwen3Config),
        "llama": (LlamaForCausalLM, LlamaConfig),
    }[family]
    biases = dict(attention_bias=True, mlp_bias=True) if family == "llama" else {}
    config = kind(
        vocab_size=96,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=80,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=FAMILIES[family]["tie_embeddings"],
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **biases,
    )
    torch.manual_seed(0)
    theirs = network._from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return theirs


def tokens(rows: int = 3) -> Tensor:
    return torch.randint(0, 96, (rows, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def stir(network: nn.Module, seed: int = 3) -> None:
    """Move every trainable number: fresh B are zero, fresh magnitudes do nothing."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(network.named_parameters()):
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.mul_(1 + 0.3 * noise)
            else:
                parameter.add_(0.1 * noise)


def peft_model(theirs: Any, **options: Any) -> Any:
    """`theirs` with one stirred adapter, trained parameters on, in eval mode."""
    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **options}
    made = get_peft_model(theirs, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    stir(made)
    return made


def relative(a: Tensor, b: Tensor) -> float:
    """The greatest difference, as a part of b's greatest value."""
    return ((a - b).abs().max() / b.abs().max()).item()
