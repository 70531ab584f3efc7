"""Memory of a device in training, part by part, under any layout and precision.

The rules are those of `gristmill.train`: weights in fp32 and forward passes in `precision`, FSDP over dp x cp, tensor
parallelism that splits matrices and what lies between gathers, pipeline stages with several micro-batches in flight,
a loss whose logits exist chunk by chunk. "mixed" and "pure-bfloat16", `zero` below 3 and `loss="whole"` are how others
do it. Not counted: the process itself (Python with torch: 0.3 to 0.5 GB) and what an allocator loses in pieces.

Shapes: D hidden_size, V vocabulary, N tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

from gristmill.model import ModelConfig
from gristmill.plan.counts import layer_counts
from gristmill.plan.kept import Kept, Piece, kept_at_the_end, kept_by_all, kept_by_layer
from gristmill.plan.settings import OPTIMIZERS, PRECISIONS, Layout, Precision, Recompute, Training

_LOSS_CHUNK = 512  # rows of logits that exist at once (gristmill.train.loss)


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that needs most, each part at its own peak. buffers: what is gathered, recomputed or in
    between, and the optimizer's workspace where it needs more. alternating: what the parts count twice because one
    goes as the other comes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    alternating: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.parts().values()) - self.alternating

    def parts(self) -> dict[str, float]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "alternating"}


def training_memory(
    config: ModelConfig,
    layout: Layout,
    *,
    precision: str = "bfloat16",
    micro_batch_rows: int = 1,
    context: int = 4096,
    optimizer: str = "adamw",
    recompute: Recompute = "none",
    **more: object,
) -> Memory:
    """Of one device of `layout` (any object with ints dp, replicas, tp, pp, cp, ep): the one that needs most.

    more: further fields of `Training`. Raises RequestError for a precision, optimizer or size that is none.
    """
    training = Training(precision, micro_batch_rows, context, optimizer, recompute, **more)  # type: ignore[arg-type]
    return memory_of(config, layout, training)


def memory_of(config: ModelConfig, layout: Layout, training: Training) -> Memory:
    """`training_memory` of settings that are together already."""
    ranks = sorted({0, min(1, layout.pp - 1), layout.pp - 1})
    found = (_of_rank(config, layout, training, rank) for rank in ranks)
    return max(found, key=lambda memory: memory.total)


def spans(num_layers: int, stages: int) -> list[range]:
    """The layers of each stage of a pipeline: embedding and head count as a layer each, and the rest goes to the first,
    the last, then the second stage and on."""
    even, left = divmod(num_layers + 2, stages)
    sizes = [even] * stages
    for stage in [0, stages - 1, *range(1, stages - 1)][:left]:
        sizes[stage] += 1
    sizes[0] -= 1
    sizes[-1] -= 1
    ends = [sum(sizes[: stage + 1]) for stage in range(stages)]
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _of_rank(config: ModelConfig, layout: Layout, training: Training, rank: int) -> Memory:
    precision = PRECISIONS[training.precision]
    per_rank = (
        2 if training.schedule in ("interleaved-1f1b", "zero-bubble") and layout.pp > 1 else 1
    )
    stages = layout.pp * per_rank
    kinds = _kinds(config, stages, layout.pp, rank)
    first, last = rank == 0, rank == layout.pp - 1
    D, tp = config.hidden_size, layout.tp

    # Parameters of this rank before FSDP: matrices divide by tp, experts by ep too, vectors stay.
    dense = experts = vectors = unit = 0.0
    for layer, number in kinds:
        c = layer_counts(config, layer, training.extra)
        own = (c.attention + c.mlp + c.router) / tp, c.experts / tp / layout.ep
        dense += number * own[0]
        experts += number * own[1]
        vectors += number * c.vectors
        unit = max(unit, sum(own) + c.vectors)  # the largest layer
    table = config.vocab_size * D / tp
    ends = D * (2 if config.norm == "layer" else 1) if last else 0
    ends += table if first else 0
    ends += config.max_seq_len * D if first and config.positions == "learned" else 0
    ends += table if last and not (config.tie_embeddings and first) else 0
    others = vectors + ends

    shards = layout.dp * layout.cp
    spread = {3: (shards, shards, shards), 2: (1, shards, shards), 1: (1, 1, shards)}[training.zero]
    gathers = training.zero == 3 and shards * layout.replicas > 1
    # Experts are dealt over part of dp already, so fewer shards are made of them.
    here = [dense + others + experts * min(n, layout.ep) for n in spread]
    weights = precision.weights * here[0] / spread[0]
    gradients = precision.gradients * here[1] / spread[1]
    of_matrix, of_other = OPTIMIZERS[training.optimizer]
    kept = precision.master + (4 if training.ema else 0)
    moved = (dense + experts * min(shards, layout.ep)) * (of_matrix + kept)
    optimizer = (moved + others * (of_other + kept)) / spread[2]

    width = precision.copies or precision.weights
    buffers = 0.0
    if (
        gathers
    ):  # two layers, what belongs to no layer, and a layer's gradients before they are summed
        buffers += (2 * unit + ends) * width + unit * (width + 4)
    elif precision.copies:
        weights += precision.copies * (dense + experts if training.recompute == "none" else unit)

    # Activations.
    tokens = training.micro_batch_rows * training.context / layout.cp
    piece = Piece(
        training.micro_batch_rows,
        training.context,
        precision.activations,
        training.kernels,
        training.apart,
    )
    flights = _in_flight(layout.pp, rank, per_rank, training)
    saved, alone = 0.0, 0.0
    for layer, number in kinds:
        whole, some, bare = _of_layer(config, layer, piece, tp)
        held = {"none": whole, "selective": some + bare, "full": bare}[training.recompute]
        saved += number * held
        alone = max(alone, whole - held + _between(config, layer, piece.width, tp))
    saved += _bytes(kept_by_all(config, piece), tp)
    activations = saved * tokens * flights
    if last:
        activations += _bytes(kept_at_the_end(config, piece), tp) * tokens
    largest = max(max(D * config.intermediate_size, D * config.num_heads * config.head_dim) / tp, 0)
    buffers += alone * tokens + (0 if gathers else largest * (4 + precision.copies))
    if layout.cp > 1:
        heads, keys, values = config.cached
        buffers += 2 * heads * (keys + values) * piece.width * tokens
    if layout.pp > 1:
        buffers += 4 * D * piece.width * tokens / tp  # sent and received, both ways

    chunk, head = _logits(config, training, tokens, tp, gathers) if last else (0.0, 0.0)
    logits = chunk + head
    passing = activations + logits + buffers
    step = (
        _muon_workspace(config, kinds, layout, precision) if training.optimizer == "muon" else 0.0
    )
    buffers += max(0.0, step - passing)
    alternating = min(
        chunk, alone * tokens
    )  # the loss is done before the layers' backward pass begins
    if training.micro_batches == 1 and layout.pp == 1:
        at_once = table * precision.gradients / spread[1]
        alternating += max(0.0, min(gradients - at_once, activations + head))
    return Memory(weights, gradients, optimizer, activations, logits, buffers, alternating)


def _in_flight(pp: int, rank: int, per_rank: int, training: Training) -> float:
    """Micro-batches whose activations a rank holds at once."""
    if pp == 1:
        return 1
    if training.schedule == "gpipe":
        return max(training.micro_batches, pp)
    if per_rank == 2:  # Narayanan et al. 2021, section 2.2
        return pp * (1 + (pp - 1) / (2 * pp)) if training.schedule == "interleaved-1f1b" else pp
    return pp - rank


@cache
def _kinds(config: ModelConfig, stages: int, pp: int, rank: int) -> tuple[tuple[int, int], ...]:
    """The layers of a rank, one of each kind with how many there are."""
    cuts = spans(config.num_layers, stages)
    number: dict[tuple[bool, str], list[int]] = {}
    for stage in range(rank, stages, pp):
        for layer in cuts[stage]:
            number.setdefault((config.is_moe(layer), config.layer_type(layer)), []).append(layer)
    return tuple((layers[0], len(layers)) for layers in number.values())


@cache
def _of_layer(config: ModelConfig, layer: int, piece: Piece, tp: int) -> tuple[float, float, float]:
    """Bytes a token that a layer keeps: all; the results of products and attention; its input."""
    kept = kept_by_layer(config, layer, piece)
    products = _bytes([k for k in kept if k.product], tp)
    # What follows each half's last product is a result too, that nothing else keeps.
    products += config.hidden_size * piece.width / tp
    return _bytes(kept, tp), products, config.hidden_size * piece.width / tp


def _bytes(kept: list[Kept], tp: int) -> float:
    return sum(k.bytes / (tp if k.split else 1) for k in kept)


def _between(config: ModelConfig, layer: int, width: int, tp: int) -> float:
    """Bytes a token that a layer's backward pass holds in between: gradients of the MLP's channels and of its ends."""
    moe, F = config.moe, config.intermediate_size
    if moe is not None and config.is_moe(layer):
        F = moe.intermediate_size * moe.experts_per_token
    return ((3 if config.gated else 2) * F / tp + 2 * config.hidden_size) * width


def _logits(
    config: ModelConfig, training: Training, tokens: float, tp: int, gathers: bool
) -> tuple[float, float]:
    """(logits and what they become, the head's cast and its gradient summed in fp32)"""
    precision = PRECISIONS[training.precision]
    V, width = config.vocab_size / tp, precision.activations
    table = V * config.hidden_size
    cast = 0 if gathers or not precision.copies else precision.copies * table
    if training.loss == "whole":
        return tokens * V * (8 if width == 4 else 8 + width), cast
    each = 4 if width == 4 else 2 * width + 4
    each = width if training.kernels == "native" else each
    return min(_LOSS_CHUNK, tokens) * V * each, cast + 4 * table


def _muon_workspace(
    config: ModelConfig, kinds: tuple[tuple[int, int], ...], layout: Layout, precision: Precision
) -> float:
    """Of the largest stack of matrices of one shape: the look-ahead, the stack, its iterate and the next one."""
    D = config.hidden_size
    dense = sum(number for layer, number in kinds if not config.is_moe(layer))
    sparse = sum(number for layer, number in kinds if config.is_moe(layer))
    stacks: list[float] = [
        2 * (dense + sparse) * D * config.num_heads * config.head_dim,  # queries and results
        (2 if config.gated else 1) * dense * D * config.intermediate_size,
    ]
    if config.moe is not None:
        experts = config.moe.num_experts / layout.ep * D * config.moe.intermediate_size
        stacks.append(2 * sparse * experts)
    spread = layout.dp * layout.cp * layout.tp
    if spread > 1:  # made whole on every rank, iterated in shares, gathered, joined
        return max(stacks) * 4 * (3 + 2 / spread)
    return max(stacks) * (8 + 2 * precision.activations)
