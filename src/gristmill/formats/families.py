"""Architectures as mappings of config.json's keys to `ModelConfig`, not as networks of their own.

Tensor names need no mapping: the network's are those of Hugging Face's Llama and Qwen3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gristmill.errors import RequestError
from gristmill.model import ModelConfig

# architecture -> (model_type, whether queries and keys are normed)
ARCHITECTURES: dict[str, tuple[str, bool]] = {
    "LlamaForCausalLM": ("llama", False),
    "Qwen3ForCausalLM": ("qwen3", True),
}


def config_from_hf(hf: dict[str, Any], file: Path) -> ModelConfig:
    """Read config.json as transformers 4 and 5 write it. `file` is named in errors.

    Raises RequestError for what the network does not do: it never computes something else in silence.
    """
    architecture = _architecture(hf, file)
    model_type, qk_norm = ARCHITECTURES[architecture]

    def count(key: str, default: int | None = None) -> int:
        value = hf.get(key) if hf.get(key) is not None else default
        if isinstance(value, bool) or not isinstance(value, int):
            raise RequestError(f"{file}: {key} must be a whole number, not {value!r}")
        return value

    eps = hf.get("rms_norm_eps", 1e-6)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise RequestError(f"{file}: rms_norm_eps must be a small number above 0, not {eps!r}")

    refuse = {
        "attention_bias": "biases in attention",
        "mlp_bias": "biases in the MLP",
        "use_sliding_window": "sliding-window attention",
    }
    for key, what in refuse.items():
        if hf.get(key):
            raise RequestError(f"{file}: {what} ({key}) is not supported yet")
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        raise RequestError(f"{file}: hidden_act must be silu, not {hf['hidden_act']!r}")
    kinds = set(hf.get("layer_types") or ["full_attention"]) - {"full_attention"}
    if kinds:
        raise RequestError(f"{file}: layer type {sorted(kinds)[0]} is not supported yet")

    # Where config.json leaves a key out, the default of its class in transformers holds.
    llama = model_type == "llama"
    hidden, heads = count("hidden_size"), count("num_attention_heads")
    return ModelConfig(
        vocab_size=count("vocab_size"),
        hidden_size=hidden,
        num_layers=count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=count("num_key_value_heads", heads if llama else 32),
        head_dim=count("head_dim", hidden // max(heads, 1) if llama else 128),
        intermediate_size=count("intermediate_size"),
        max_seq_len=count("max_position_embeddings", 2048 if llama else 32768),
        rope_theta=_rope_theta(hf, file),
        rms_norm_eps=float(eps),
        qk_norm=qk_norm,
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """config.json's content: transformers 5 reads `rope_parameters`, older readers `rope_theta`."""
    architecture = "Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"
    hf: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": ARCHITECTURES[architecture][0],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if not config.qk_norm:
        hf["mlp_bias"] = False
    return hf


def _architecture(hf: dict[str, Any], file: Path) -> str:
    names = hf.get("architectures") or [
        name for name, (kind, _) in ARCHITECTURES.items() if kind == hf.get("model_type")
    ]
    name = names[0] if isinstance(names, list) and names else hf.get("model_type")
    if name not in ARCHITECTURES:
        raise RequestError(
            f"{file}: architecture {name!r} is not supported; supported are "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    return name


def _rope_theta(hf: dict[str, Any], file: Path) -> float:
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise RequestError(f"{file}: rope_parameters must be an object, not {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise RequestError(f"{file}: positions of rope_type {kind!r} are not supported yet")
    theta = rope.get("rope_theta", hf.get("rope_theta", 10_000.0))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        raise RequestError(f"{file}: rope_theta must be a number above 0, not {theta!r}")
    return float(theta)
