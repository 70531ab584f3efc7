"""What a family is: its keys in config.json, its names of tensors. The network is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gristmill.formats.keys import Keys, rope_to_hf
from gristmill.formats.rules import Rule
from gristmill.model import ModelConfig


def no_rules(config: ModelConfig) -> list[Rule]:
    """The network's own names, which are those of Llama."""
    return []


@dataclass(frozen=True)
class Family:
    """`name` is config.json's model_type and `ModelConfig.family`.

    `read` makes a ModelConfig of config.json; `write` gives the keys beyond those that all families share;
    `rules` says which tensors have other names or another layout on disk. `prefix` begins the names of all but
    the head, unless the file was saved from the body alone (as GPT-2's own files are). `unused` matches names of
    tensors that releases hold and prediction does not need.
    """

    name: str
    architecture: str
    read: Callable[[Keys], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], list[Rule]] = no_rules
    prefix: str = "model."
    unused: Callable[[ModelConfig], str] = lambda config: "(?!)"


def llama_like(
    keys: Keys,
    family: str,
    *,
    kv_heads: int | None = None,
    width: int | None = None,
    context: int = 2048,
    eps: float = 1e-6,
    theta: float = 10_000.0,
    tied: bool = False,
    act_key: str = "hidden_act",
    act: str = "silu",
    **settings: Any,
) -> ModelConfig:
    """The keys that most families share.

    The arguments up to `act` are the defaults of the family's class in transformers, for keys that are absent
    (`kv_heads` None: as many as heads; `width` of a head None: hidden_size / heads); `settings` are what the
    family does differently.
    """
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    head_dim = keys.count("head_dim", hidden // max(heads, 1) if width is None else width)
    shared: dict[str, Any] = dict(
        family=family,
        vocab_size=keys.count("vocab_size"),
        hidden_size=hidden,
        num_layers=keys.count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=keys.kv_heads(heads, kv_heads),
        head_dim=head_dim,
        intermediate_size=keys.count("intermediate_size"),
        max_seq_len=keys.count("max_position_embeddings", context),
        norm_eps=keys.number("rms_norm_eps", eps),
        qk_norm=False,
        activation=keys.activation(act_key, act),
        tie_embeddings=keys.flag("tie_word_embeddings", tied),
    )
    return ModelConfig(**{**shared, **keys.rope(head_dim, theta), **settings})


def llama_like_keys(config: ModelConfig) -> dict[str, Any]:
    """config.json's keys for `llama_like`, new ones and the old ones that older readers need."""
    share = config.rotated / config.head_dim
    rope = rope_to_hf(config.rope_theta, config.rope_scaling, share)
    keys: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "gelu_pytorch_tanh"
        if config.activation == "gelu_tanh"
        else config.activation,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }
    if config.rope_scaling is not None:
        keys["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    if config.layer_types:
        keys["layer_types"] = list(config.layer_types)
    if config.sliding_window is not None:
        keys["sliding_window"] = config.sliding_window
    return keys


def moe_layers(config: ModelConfig) -> list[int]:
    return [layer for layer in range(config.num_layers) if config.is_moe(layer)]
