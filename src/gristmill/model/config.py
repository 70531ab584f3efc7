"""The shape of a decoder-only Transformer, in the field's own names: every family is one of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gristmill.errors import RequestError

FULL, SLIDING = "full_attention", "sliding_attention"  # the names of config.json's layer_types


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for contexts longer than those first trained on.

    `attention_factor` multiplies cos and sin; None: what `kind` prescribes for `factor`.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float
    original_max_seq_len: int = 0  # llama3, yarn, longrope: tokens
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: whether the ramp begins and ends at whole dimensions
    mscale: float | None = None  # yarn, as DeepSeek uses it
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()  # longrope, one per pair of dimensions
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise RequestError(f"rope scaling: factor must be above 0, not {self.factor}")
        if self.kind == "longrope":
            factors = (*self.short_factors, *self.long_factors)
            same = 0 < len(self.short_factors) == len(self.long_factors)
            if not same or min(factors) <= 0 or self.original_max_seq_len < 2:
                raise RequestError(
                    "rope scaling: longrope needs as many short factors as long ones, all above 0, and the context "
                    "that it scales"
                )
        if self.kind != "linear" and self.original_max_seq_len < 1:
            raise RequestError(
                f"rope scaling: {self.kind} needs original_max_position_embeddings, the context it scales"
            )
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise RequestError("rope scaling: high_freq_factor must be above low_freq_factor")


@dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of the MLP; each token goes to `experts_per_token` of `num_experts`.

    `scoring`: "softmax" over all experts, then the best are chosen (Mixtral, Qwen3-MoE); "softmax_chosen" over
    the chosen alone (gpt-oss); "sigmoid" with a correction bias that only steers the choice (DeepSeek-V3).
    `normalize` makes the chosen weights sum to 1. With groups, the choice is among the experts of the
    `groups_kept` best of `num_groups`.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    scoring: Literal["softmax", "softmax_chosen", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    num_groups: int = 1
    groups_kept: int = 1
    shared_intermediate_size: int = 0  # of the experts that every token passes; 0: there are none
    bias: bool = False  # on router and experts
    dense_layers: tuple[int, ...] = ()  # layers that keep a plain MLP

    def __post_init__(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise RequestError(
                f"model config: experts_per_token ({self.experts_per_token}) must be from 1 to "
                f"num_experts ({self.num_experts})"
            )
        if self.num_experts % max(self.num_groups, 1):
            raise RequestError(
                f"model config: num_experts ({self.num_experts}) must be a multiple of "
                f"num_groups ({self.num_groups})"
            )
        size = self.num_experts // max(self.num_groups, 1)
        if not 1 <= self.groups_kept <= self.num_groups or (self.num_groups > 1 and size < 2):
            raise RequestError(
                f"model config: {self.groups_kept} of {self.num_groups} groups with {size} experts each "
                "cannot be chosen from"
            )
        if self.groups_kept * size < self.experts_per_token:
            raise RequestError(
                f"model config: {self.groups_kept} groups of {size} experts hold fewer than "
                f"experts_per_token ({self.experts_per_token})"
            )


@dataclass(frozen=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values come from a small shared vector.

    A head's queries and keys are `head_dim` = nope + rope wide, and `rotary_dim` of it is the rope part.
    """

    query_rank: int | None  # None: queries come straight from the hidden state
    key_value_rank: int
    value_head_dim: int


@dataclass(frozen=True)
class ModelConfig:
    """Sizes are counts of elements. The defaults are Qwen3's: pre-norm, RMSNorm, RoPE, SwiGLU, no biases.

    `family` names the mapping to names on disk (`formats.families`); it changes nothing that is computed.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_seq_len: int
    family: str = "qwen3"
    # positions
    positions: Literal["rope", "learned"] = "rope"
    rope_theta: float = 10_000.0
    rope_theta_local: float | None = (
        None  # of the sliding layers, never scaled; None: as the others
    )
    rope_scaling: RopeScaling | None = None
    rotary_dim: int | Literal["head_dim"] = "head_dim"  # how much of a head is rotated
    # attention
    layer_types: tuple[str, ...] = ()  # FULL or SLIDING for each layer; (): all are FULL
    sliding_window: int | None = None  # tokens that a SLIDING layer sees, its own included
    qk_norm: bool = True
    qk_norm_over: Literal["head", "projection"] = "head"
    attention_bias: bool = False  # on q, k, v
    output_bias: bool = False  # on o
    attention_sinks: bool = False
    query_scale: float | Literal["rsqrt"] = (
        "rsqrt"  # scores are multiplied by it; rsqrt: 1/√head_dim
    )
    attention_softcap: float | None = None
    latent: LatentConfig | None = None
    # MLP
    activation: Literal["silu", "gelu", "gelu_tanh", "swiglu_clamped"] = "silu"
    gated: bool = True
    mlp_bias: bool = False
    moe: MoEConfig | None = None
    # norms and residuals
    norm: Literal["rms", "rms_plus_one", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_placement: Literal["pre", "post", "both"] = "pre"
    parallel_residual: bool = False
    # embeddings and head
    embedding_scale: float = 1.0
    tie_embeddings: bool = True
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "max_seq_len",
        ):
            if getattr(self, name) < 1:
                raise RequestError(
                    f"model config: {name} must be at least 1, not {getattr(self, name)}"
                )
        if self.num_heads % self.num_kv_heads:
            raise RequestError(
                f"model config: num_heads ({self.num_heads}) must be a multiple of "
                f"num_kv_heads ({self.num_kv_heads})"
            )
        if self.positions == "rope" and self.rotated % 2:
            raise RequestError(
                f"model config: head_dim must be even for rotary positions, not {self.rotated}"
            )
        if not 0 < self.rotated <= self.head_dim:
            raise RequestError(
                f"model config: rotary_dim must be from 2 to head_dim ({self.head_dim}), not {self.rotated}"
            )
        if self.layer_types and len(self.layer_types) != self.num_layers:
            raise RequestError(
                f"model config: layer_types names {len(self.layer_types)} layers and num_layers is "
                f"{self.num_layers}"
            )
        unknown = set(self.layer_types) - {FULL, SLIDING}
        if unknown:
            raise RequestError(f"model config: layer type {sorted(unknown)[0]!r} is not supported")
        scaling = self.rope_scaling
        if scaling and scaling.kind == "longrope" and 2 * len(scaling.long_factors) != self.rotated:
            raise RequestError(
                f"model config: longrope has {len(scaling.long_factors)} factors for {self.rotated // 2} pairs"
            )
        if SLIDING in self.layer_types and (self.sliding_window or 0) < 1:
            raise RequestError("model config: sliding layers need a sliding_window of at least 1")

    @property
    def rotated(self) -> int:
        """How many dimensions of a head are rotated."""
        return self.head_dim if self.rotary_dim == "head_dim" else self.rotary_dim

    @property
    def value_head_dim(self) -> int:
        return self.latent.value_head_dim if self.latent else self.head_dim

    @property
    def cached(self) -> tuple[int, int, int]:
        """What a layer keeps of a token: heads, and the widths of their keys and values.

        Latent attention keeps its small vector with the rotary part, which all heads read.
        """
        if self.latent is None:
            return self.num_kv_heads, self.head_dim, self.head_dim
        rank = self.latent.key_value_rank
        return 1, self.rotated + rank, rank

    @property
    def score_scale(self) -> float:
        return self.head_dim**-0.5 if self.query_scale == "rsqrt" else self.query_scale

    @property
    def frequency_switch(self) -> int | None:
        """The length beyond which a row's rotary frequencies are others (LongRoPE); None: they never change."""
        scaling = self.rope_scaling
        return scaling.original_max_seq_len if scaling and scaling.kind == "longrope" else None

    def layer_type(self, layer: int) -> str:
        return self.layer_types[layer] if self.layer_types else FULL

    def is_moe(self, layer: int) -> bool:
        return self.moe is not None and layer not in self.moe.dense_layers

    @property
    def num_parameters(self) -> int:
        """All trained numbers; tied embeddings are counted once."""
        from gristmill.model.transformer import meta_network  # the network is built from this file

        return sum(parameter.numel() for parameter in meta_network(self).parameters())
