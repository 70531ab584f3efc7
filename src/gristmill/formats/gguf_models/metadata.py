"""llama.cpp's metadata of a network: what we write, and reading it back as a `ModelConfig`.

Sources: the GGUF specification and what llama.cpp (2026-10, through xllamacpp) reads for each architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gristmill.errors import RequestError
from gristmill.formats.gguf_models.names import ARCHITECTURES, architecture
from gristmill.formats.gguf_models.scaling import read_scaling, same_frequencies, scaling_keys
from gristmill.formats.keys import Keys
from gristmill.model import FULL, SLIDING, ModelConfig, MoEConfig

# Where llama.cpp applies a window; which layers have it is fixed by the architecture. (Phi-3's it reads and ignores.)
_WINDOWED = ("gemma2", "gemma3", "gpt-oss")
_SOFTMAX_CHOSEN = 3  # llama.cpp's expert_gating_func of gpt-oss
# Keys that change what is computed and are not read, each with the value that changes nothing.
_UNREAD: dict[str, Any] = {
    "attention.scale": 0.0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "rope.scale_linear": 1.0,
    "expert_weights_scale": 1.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "expert_shared_count": 0,
    "attention.causal": True,
}


def to_metadata(config: ModelConfig) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Keys under llama.cpp's names, and the small tensors that say how positions are scaled.

    A context longer than a window that llama.cpp would not apply is cut to that window: within it the numbers
    are the same. Raises RequestError, naming the setting, for a network that llama.cpp computes differently.
    """
    arch = architecture(config)
    config = within_window(config)
    keys: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_seq_len,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
    }
    epsilon = "layer_norm_epsilon" if config.norm == "layer" else "layer_norm_rms_epsilon"
    keys[f"attention.{epsilon}"] = config.norm_eps
    if config.head_dim * config.num_heads != config.hidden_size or arch in ("gemma2", "gemma3"):
        keys["attention.key_length"] = keys["attention.value_length"] = config.head_dim
    if config.positions == "rope":
        keys["rope.dimension_count"] = config.rotated
        keys["rope.freq_base"] = config.rope_theta
    if arch in _WINDOWED and config.sliding_window is not None:
        keys["attention.sliding_window"] = config.sliding_window
    if arch == "gemma3":
        keys["rope.freq_base_swa"] = config.rope_theta_local
    for name, cap in (
        ("attn_logit_softcapping", config.attention_softcap),
        ("final_logit_softcapping", config.logit_softcap),
    ):
        if cap is not None:
            keys[name] = cap
    if arch == "gptneox":
        keys["use_parallel_residual"] = config.parallel_residual
    if config.moe is not None:
        keys |= _moe_keys(config.moe, arch)
    scaling, tensors = scaling_keys(config)
    metadata = {f"{arch}.{key}": value for key, value in (keys | scaling).items()}
    metadata = {"general.architecture": arch, **metadata}
    said = from_metadata(metadata, tensors, config.tie_embeddings, Path("the GGUF file"))
    _check_said(config, said)
    return metadata, tensors


def from_metadata(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    tied: bool,
    file: Path,
    vocab_size: int | None = None,
) -> ModelConfig:
    """The network that a file's metadata describe. `tensors` are its `rope_*` ones; `tied`: no `output.weight`.

    `vocab_size` where the metadata do not say it: the rows of `token_embd.weight`. Raises RequestError, naming
    the file and the key.
    """
    try:
        return _read(metadata, tensors, tied, file, vocab_size)
    except RequestError as error:
        if str(error).startswith(str(file)):
            raise
        raise RequestError(f"{file}: {error}") from error


def _read(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    tied: bool,
    file: Path,
    vocab_size: int | None,
) -> ModelConfig:
    arch = metadata.get("general.architecture")
    if arch not in set(ARCHITECTURES.values()):
        known = ", ".join(dict.fromkeys(ARCHITECTURES.values()))
        raise RequestError(f"{file}: architecture {arch!r} is not supported; supported are {known}")
    prefix = f"{arch}."
    own = {
        k.removeprefix(prefix): _single(k, v, file)
        for k, v in metadata.items()
        if k.startswith(prefix)
    }
    keys = Keys(own, file)
    if metadata.get("split.count", 0) > 1:
        raise keys.error(
            "this is one part of a model that is split into several files; join them first with "
            "llama-gguf-split --merge"
        )
    keys.refuse(**{name: harmless for name, harmless in _UNREAD.items() if name in own})
    if arch == "olmo2":
        keys.refuse(**{"attention.sliding_window": None})  # OLMo 3 goes by the same name
    heads, layers = keys.count("attention.head_count"), keys.count("block_count")
    hidden = keys.count("embedding_length")
    head_dim = keys.count("attention.key_length", hidden // max(heads, 1))
    keys.refuse(**{"attention.value_length": head_dim})
    rotated = keys.count("rope.dimension_count", head_dim)
    layer_norm = arch in ("gpt2", "gptneox")
    epsilon = "layer_norm_epsilon" if layer_norm else "layer_norm_rms_epsilon"
    moe = _moe(keys, arch)
    family = next(f for f, a in ARCHITECTURES.items() if a == arch)
    if arch == "llama" and moe is not None:
        family = "mixtral"
    shared: dict[str, Any] = dict(
        family=family,
        vocab_size=keys.count("vocab_size", vocab_size),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=keys.count("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=keys.count("feed_forward_length"),
        max_seq_len=keys.count("context_length"),
        norm_eps=keys.number(f"attention.{epsilon}"),
        rope_theta=keys.number("rope.freq_base", 10_000.0),
        rope_scaling=read_scaling(keys, tensors, rotated, arch),
        rotary_dim="head_dim" if rotated == head_dim else rotated,
        qk_norm=arch in ("qwen3", "qwen3moe", "gemma3", "olmo2"),
        moe=moe,
        tie_embeddings=tied,
    )
    return ModelConfig(**(shared | _SPECIFIC.get(arch, lambda keys, layers: {})(keys, layers)))


def _single(key: str, value: Any, file: Path) -> Any:
    """A value for all layers: a list of one for each must say the same for all.

    A float32 becomes the short decimal number that was meant: 1e-06, not 9.99999997e-07.
    """
    if isinstance(value, np.ndarray):
        if not len(value) or (value != value[0]).any():
            raise RequestError(f"{file}: {key} differs by layer, which is not supported")
        value = value[0].item()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def within_window(config: ModelConfig) -> ModelConfig:
    """`config` without a window that llama.cpp would not apply, and no longer a context than that window."""
    if architecture(config) in _WINDOWED or SLIDING not in config.layer_types:
        return config
    assert config.sliding_window is not None
    shorter = min(config.max_seq_len, config.sliding_window)
    return replace(config, max_seq_len=shorter, layer_types=(), sliding_window=None)


def _check_said(config: ModelConfig, said: ModelConfig) -> None:
    """What the file says must be the network's own settings: a lost one would change what it says."""
    for name in vars(config):
        ours, read = getattr(config, name), getattr(said, name)
        if name == "family" or ours == read:  # Mistral within its window is a Llama
            continue
        if (
            isinstance(ours, float)
            and isinstance(read, float)
            and np.float32(ours) == np.float32(read)
        ):
            continue
        if name == "rope_scaling" and same_frequencies(config, said):
            continue
        raise RequestError(
            f"llama.cpp cannot run this {config.family}: in its {said.family} {name} is {read!r}, here it is "
            f"{ours!r}"
        )


# What an architecture does without saying so in the metadata.


def _biased(keys: Keys, layers: int) -> dict[str, Any]:
    return {"attention_bias": True}


def _gemma(keys: Keys, layers: int, pattern: int, largest: int) -> dict[str, Any]:
    hidden, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    # llama.cpp knows the 27B models by their number of layers: they scale by another width.
    width = (
        hidden // max(heads, 1) if layers == largest else keys.count("attention.key_length", 256)
    )
    return {
        "layer_types": tuple(FULL if (i + 1) % pattern == 0 else SLIDING for i in range(layers)),
        "sliding_window": keys.count("attention.sliding_window", 4096),
        "query_scale": width**-0.5,
        "activation": "gelu_tanh",
        "norm": "rms_plus_one",
        "norm_placement": "both",
        "embedding_scale": hidden**0.5,
        "attention_softcap": keys.optional("attn_logit_softcapping"),
        "logit_softcap": keys.optional("final_logit_softcapping"),
    }


def _gemma2(keys: Keys, layers: int) -> dict[str, Any]:
    return _gemma(keys, layers, pattern=2, largest=46)


def _gemma3(keys: Keys, layers: int) -> dict[str, Any]:
    local = keys.number("rope.freq_base_swa", 10_000.0)
    return {**_gemma(keys, layers, pattern=6, largest=62), "rope_theta_local": local}


def _olmo2(keys: Keys, layers: int) -> dict[str, Any]:
    return {"norm_placement": "post", "qk_norm_over": "projection"}


def _phi3(keys: Keys, layers: int) -> dict[str, Any]:
    window = keys.count("attention.sliding_window", 0)
    return {"sliding_window": window, "layer_types": (SLIDING,) * layers} if window else {}


def _gpt(keys: Keys, layers: int) -> dict[str, Any]:
    return {
        "attention_bias": True,
        "output_bias": True,
        "gated": False,
        "mlp_bias": True,
        "norm": "layer",
    }


def _gpt2(keys: Keys, layers: int) -> dict[str, Any]:
    return {**_gpt(keys, layers), "positions": "learned", "activation": "gelu_tanh"}


def _gptneox(keys: Keys, layers: int) -> dict[str, Any]:
    parallel = keys.flag("use_parallel_residual", True)
    # llama.cpp computes GELU by its tanh form here; the models were trained with the exact one.
    return {**_gpt(keys, layers), "activation": "gelu", "parallel_residual": parallel}


def _gpt_oss(keys: Keys, layers: int) -> dict[str, Any]:
    return {
        "attention_bias": True,
        "output_bias": True,
        "attention_sinks": True,
        "activation": "swiglu_clamped",
        "layer_types": tuple(FULL if i % 2 else SLIDING for i in range(layers)),
        "sliding_window": keys.count("attention.sliding_window", 128),
        "intermediate_size": keys.count(
            "expert_feed_forward_length", keys.count("feed_forward_length")
        ),
    }


_SPECIFIC: dict[str, Callable[[Keys, int], dict[str, Any]]] = {
    "qwen2": _biased,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
    "gpt-oss": _gpt_oss,
}


def _moe_keys(moe: MoEConfig, arch: str) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "expert_count": moe.num_experts,
        "expert_used_count": moe.experts_per_token,
    }
    if arch in ("qwen3moe", "gpt-oss"):
        keys["expert_feed_forward_length"] = moe.intermediate_size
    if arch == "gpt-oss":
        keys["expert_gating_func"] = _SOFTMAX_CHOSEN
    return keys


def _moe(keys: Keys, arch: str) -> MoEConfig | None:
    experts = keys.count("expert_count", 0)
    if not experts:
        return None
    width = keys.count("expert_feed_forward_length", keys.count("feed_forward_length"))
    chosen = arch == "gpt-oss"
    return MoEConfig(
        num_experts=experts,
        experts_per_token=keys.count("expert_used_count"),
        intermediate_size=width,
        scoring="softmax_chosen" if chosen else "softmax",
        # llama.cpp normalizes for both; where all experts are chosen from it is the same
        normalize=not chosen,
        bias=chosen,
    )
