"""Serving: what weights and caches take, what fits, and how fast memory and arithmetic let it be (a roofline).

Decode reads all weights that a step needs and the caches of its rows, and computes 2 FLOPs for each parameter and row;
the slower of the two is the step. Prefill is arithmetic. Nothing else is counted (launches, sampling, traffic between
devices), so engines reach 0.5 to 0.9 of it: `reached` says what is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gristmill.errors import RequestError, nearest
from gristmill.model import SLIDING, ModelConfig
from gristmill.plan.counts import counts, flops_per_token
from gristmill.plan.presets import Device

# (bits of a hidden matrix's weight with its scales, bits of embedding and head, the precision that it computes in)
WEIGHTS: Mapping[str, tuple[float, float, str]] = MappingProxyType(
    {
        "float32": (32, 32, "float32"),
        "bfloat16": (16, 16, "bfloat16"),
        "fp8": (8, 16, "fp8"),
        "int8": (8, 16, "int8"),
        "int4-g128": (4 + 16 / 128 + 4 / 128, 16, "bfloat16"),  # fp16 scale and 4-bit zero for 128
        "q8_0": (8.5, 8.5, "bfloat16"),
        "q6_k": (6.5625, 6.5625, "bfloat16"),
        "q5_k_m": (5.704, 5.704, "bfloat16"),  # of llama.cpp's mixtures the mean over a file,
        "q4_k_m": (4.894, 4.894, "bfloat16"),  # measured on Llama-3.1-8B
        "q4_0": (4.5, 6.5625, "bfloat16"),
    }
)
CACHES = ("float32", "float16", "int8", "int4")  # of gristmill.engine
_GROUP = 32  # elements of an int4 cache that share a scale and a least value
REACHED = 0.7
_FREE = 0.92  # of a device's memory


@dataclass(frozen=True)
class Speed:
    """Tokens a second: of all rows together, of one row, of a prompt. bound: what decode waits for."""

    decode: float
    row: float
    prefill: float
    bound: str
    first_token_seconds: float


def weight_bytes(config: ModelConfig, weights: str, extra: int = 0) -> float:
    """Of all parameters; norms, biases, routers and sinks stay in at least 16 bits."""
    bits, ends, _ = _form(weights)
    held = counts(config, extra)
    small = held.vectors + held.router
    of_ends = held.embedding + held.head
    return (
        (held.matrices - held.router) * bits + of_ends * ends + small * max(16, min(32, bits))
    ) / 8


def cache_bytes_per_token(config: ModelConfig, cache: str = "float16") -> int:
    """Keys and values of one token in all layers, as `gristmill.engine` keeps them (scales included)."""
    if cache not in CACHES:
        raise RequestError(
            f'a cache is kept as {", ".join(CACHES)}, not "{cache}".{nearest(cache, CACHES)}'
        )
    heads, *widths = config.cached
    return config.num_layers * heads * sum(_kept(width, cache) for width in widths)


def _kept(width: int, cache: str) -> int:
    """Bytes of `width` elements of one head."""
    if cache == "int8":
        return width + 4
    if cache == "int4":
        return (width + 1) // 2 + -(-width // _GROUP) * 4
    return width * (4 if cache == "float32" else 2)


def cache_bytes(config: ModelConfig, context: int, rows: int, cache: str = "float16") -> int:
    """Of `rows` sequences of `context` tokens. Sliding layers keep all, as the engine does."""
    return cache_bytes_per_token(config, cache) * context * rows


def cache_read_bytes(config: ModelConfig, context: int, cache: str = "float16") -> float:
    """What one new token reads: in sliding layers no more than their window."""
    a_layer = cache_bytes_per_token(config, cache) / config.num_layers
    seen = 0
    for layer in range(config.num_layers):
        sliding = config.layer_type(layer) == SLIDING
        seen += min(context, config.sliding_window or context) if sliding else context
    return a_layer * seen


def read_bytes(config: ModelConfig, weights: str, rows: int, extra: int = 0) -> float:
    """Weights that a decode step of `rows` reads: no embedding table; of experts those that a row is sent to."""
    bits, ends, _ = _form(weights)
    held = counts(config, extra)
    table = config.vocab_size * config.hidden_size
    all_bytes = weight_bytes(config, weights, extra)
    lookup = (held.embedding - (table if config.tie_embeddings else 0)) * ends / 8
    unread = 0.0
    if config.moe:
        missed = (1 - config.moe.experts_per_token / config.moe.num_experts) ** rows
        unread = held.experts * bits / 8 * missed
    return all_bytes - lookup - unread


def speed(
    config: ModelConfig,
    device: Device,
    *,
    weights: str = "bfloat16",
    cache: str = "float16",
    context: int = 4096,
    rows: int = 1,
    devices: int = 1,
    reached: float = REACHED,
    extra: int = 0,
) -> Speed:
    """The roofline over `devices` that share every matrix. context: tokens in each row's cache, and of the prompt."""
    peak = device.peak(_form(weights)[2]) * devices * reached
    bandwidth = device.bandwidth * devices * reached
    reading = read_bytes(config, weights, rows, extra) + rows * cache_read_bytes(
        config, context, cache
    )
    token = flops_per_token(config, context, extra=extra).forward
    moving, computing = reading / bandwidth, rows * token / peak
    step = max(moving, computing)
    prompt = flops_per_token(config, context, causal=True, extra=extra).forward * context
    # A prompt reads all weights once: short ones wait for memory too.
    prefill = max(prompt / peak, read_bytes(config, weights, context, extra) / bandwidth)
    return Speed(
        rows / step,
        1 / step,
        context / prefill,
        "memory" if moving >= computing else "arithmetic",
        prefill,
    )


def rows_that_fit(
    config: ModelConfig,
    device: Device,
    weights: str,
    cache: str,
    context: int,
    devices: int = 1,
    extra: int = 0,
) -> int:
    """Sequences of `context` tokens whose caches fit beside the weights; 0 where not even one does."""
    room = device.memory * devices * _FREE - weight_bytes(config, weights, extra)
    return max(0, int(room // cache_bytes(config, context, 1, cache)))


def price_per_million(
    tokens_per_second: float, price: float | None, devices: int = 1
) -> float | None:
    """US dollars for a million tokens at so many dollars a device-hour; None where no price is known."""
    if price is None:
        return None
    return price * devices / 3600 / tokens_per_second * 1e6


def tokens_per_pass(acceptance: float, drafts: int) -> float:
    """Expected tokens of a pass that checks `drafts` tokens, kept with probability `acceptance` (Leviathan 2023)."""
    if not 0 <= acceptance <= 1:
        raise RequestError(f"an acceptance is a share from 0 to 1, not {acceptance}")
    if acceptance == 1:
        return drafts + 1.0
    return (1 - acceptance ** (drafts + 1)) / (1 - acceptance)


def speculative_speedup(
    acceptance: float, drafts: int, draft_cost: float, check_cost: float = 1.0
) -> float:
    """Against plain decoding. draft_cost: time of a drafted token, check_cost: of the pass that checks them, both as
    shares of a plain step."""
    return tokens_per_pass(acceptance, drafts) / (drafts * draft_cost + check_cost)


def _form(weights: str) -> tuple[float, float, str]:
    if weights not in WEIGHTS:
        raise RequestError(
            f'weights are {", ".join(WEIGHTS)}, not "{weights}".{nearest(weights, WEIGHTS)}'
        )
    return WEIGHTS[weights]
