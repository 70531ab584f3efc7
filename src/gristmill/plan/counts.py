"""Exact counts of a network: parameters by what they are, and the floating-point operations of a token.

A closed form of `gristmill.model`: it must equal the network's own count, which a test checks for every preset.

Shapes: D hidden_size, V vocabulary, H heads, K key-value heads, C head_dim, T tokens of a context.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from gristmill.model import SLIDING, ModelConfig


@dataclass(frozen=True)
class LayerCounts:
    """Parameters of one layer. experts: of all of them; expert: of one. vectors: norms, biases, sinks."""

    attention: int
    mlp: int  # dense MLP, or the shared experts
    router: int
    experts: int
    expert: int
    vectors: int

    @property
    def total(self) -> int:
        return self.attention + self.mlp + self.router + self.experts + self.vectors


@dataclass(frozen=True)
class Counts:
    """Parameters of the network. A tied embedding is counted once, as `embedding`.

    active: those that one token meets: all but the experts that it is not sent to. multiplied: those of them that it
    is multiplied with, so without the embedding table, norms and biases, and with the output projection.
    matrices: what Muon moves (hidden matrices and experts).
    """

    total: int
    active: int
    embedding: int
    head: int
    attention: int
    mlp: int
    router: int
    experts: int
    vectors: int
    multiplied: int

    @property
    def matrices(self) -> int:
        return self.attention + self.mlp + self.router + self.experts

    @property
    def body(self) -> int:
        """Without embedding and head: the N of Kaplan 2020."""
        return self.total - self.embedding - self.head


@dataclass(frozen=True)
class Flops:
    """Of one token: `matrices` is 2 for each parameter that it is multiplied with, `attention` is scores and values."""

    matrices: float
    attention: float

    @property
    def forward(self) -> float:
        return self.matrices + self.attention

    @property
    def training(self) -> float:
        """Forward and backward: the backward pass has two products for each of the forward one."""
        return 3 * self.forward


@cache
def layer_counts(config: ModelConfig, layer: int, extra: int = 0) -> LayerCounts:
    """Of a layer. extra: matrices that the published network has beyond ours."""
    D, H, K, C = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
    per_norm = 2 if config.norm == "layer" else 1
    latent = config.latent
    if latent is None:
        attention = D * C * (2 * H + 2 * K)
        vectors = (H + 2 * K) * C if config.attention_bias else 0
        if config.qk_norm:
            vectors += per_norm * (2 * C if config.qk_norm_over == "head" else (H + K) * C)
        vectors += H if config.attention_sinks else 0
    else:
        down = latent.key_value_rank + config.rotated
        expanded = H * (C - config.rotated + latent.value_head_dim)
        attention = D * down + latent.key_value_rank * expanded + H * latent.value_head_dim * D
        vectors = latent.key_value_rank + (down if config.attention_bias else 0)
        if latent.query_rank is None:
            attention += D * H * C
        else:
            attention += latent.query_rank * (D + H * C)
            vectors += latent.query_rank * (2 if config.attention_bias else 1)
    vectors += D if config.output_bias else 0
    vectors += D * per_norm * (4 if config.norm_placement == "both" else 2)
    gates = 2 if config.gated else 1
    moe, mlp, router, experts, expert = config.moe, 0, 0, 0, 0
    if moe is not None and config.is_moe(layer):
        expert = 3 * D * moe.intermediate_size
        experts = moe.num_experts * expert
        router = moe.num_experts * D
        if moe.bias:
            vectors += moe.num_experts * (1 + 2 * moe.intermediate_size + D)
        width = moe.shared_intermediate_size
    else:
        width = config.intermediate_size
    if width:
        mlp = (gates + 1) * D * width
        vectors += gates * width + D if config.mlp_bias else 0
    return LayerCounts(attention + extra, mlp, router, experts, expert, vectors)


def counts(config: ModelConfig, extra: int = 0) -> Counts:
    """Of the whole network. extra: as in `layer_counts`."""
    layers = [layer_counts(config, layer, extra) for layer in range(config.num_layers)]
    D = config.hidden_size
    table = config.vocab_size * D
    embedding = table + (config.max_seq_len * D if config.positions == "learned" else 0)
    head = 0 if config.tie_embeddings else table
    attention, mlp, router, experts, vectors = (
        sum(getattr(layer, name) for layer in layers)
        for name in ("attention", "mlp", "router", "experts", "vectors")
    )
    vectors += D * (2 if config.norm == "layer" else 1)  # the last norm
    total = embedding + head + attention + mlp + router + experts + vectors
    chosen = config.moe.experts_per_token if config.moe else 0
    met = sum(chosen * layer.expert for layer in layers)
    return Counts(
        total=total,
        active=total - experts + met,
        embedding=embedding,
        head=head,
        attention=attention,
        mlp=mlp,
        router=router,
        experts=experts,
        vectors=vectors,
        multiplied=attention + mlp + router + met + table,
    )


def flops_per_token(
    config: ModelConfig, context: int, *, causal: bool = False, extra: int = 0
) -> Flops:
    """A token's forward pass in a sequence of `context` tokens, averaged over its places.

    causal=False is the convention by which MFU is told (PaLM, appendix B): each token attends to all `context`, so
    attention is 4·L·H·C·T. A causal kernel does about half of it: causal=True counts the pairs that are seen.
    Sliding layers see their window. The output projection counts; norms, activations and the router's choice do not.
    """
    widths = config.num_heads * (config.head_dim + config.value_head_dim)
    seen = 0.0
    for layer in range(config.num_layers):
        window = config.sliding_window if config.layer_type(layer) == SLIDING else None
        seen += span(context, window, causal)
    return Flops(2.0 * counts(config, extra).multiplied, 2.0 * widths * seen)


def span(context: int, window: int | None, causal: bool) -> float:
    """How many tokens a token attends to, in the mean over a sequence of `context`."""
    width = context if window is None else min(window, context)
    if not causal:
        return width
    # min(t, width) for t = 1 … context
    return (width * (width + 1) / 2 + (context - width) * width) / context
