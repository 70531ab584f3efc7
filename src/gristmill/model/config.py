"""The shape of a decoder-only Transformer, in the field's own names."""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.errors import RequestError


@dataclass(frozen=True)
class ModelConfig:
    """Llama-shaped when `qk_norm` is off, Qwen3-shaped when it is on. Sizes are counts of elements."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_seq_len: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    qk_norm: bool = True
    tie_embeddings: bool = True

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
        if self.head_dim % 2:
            raise RequestError(
                f"model config: head_dim must be even for rotary positions, not {self.head_dim}"
            )

    @property
    def num_parameters(self) -> int:
        """All trained numbers; tied embeddings are counted once."""
        d, hd = self.hidden_size, self.head_dim
        attention = 2 * d * hd * self.num_heads + 2 * d * hd * self.num_kv_heads
        norms = 2 * d + (2 * hd if self.qk_norm else 0)
        layer = attention + 3 * d * self.intermediate_size + norms
        embeddings = self.vocab_size * d * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + d + embeddings
