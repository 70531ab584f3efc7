"""The best layouts of a training over N devices, by search: every layout that divides the model, its memory, its time.

The time of a step is modelled from what is printed on the devices and one assumption, `efficiency`: the share of peak
that matrix products and attention reach where nothing waits. What waits is modelled: the pipeline's bubble, tensor
parallel gathers (never hidden), FSDP's and the ring's traffic beyond what computing hides, experts' exchange. It ranks
layouts; expect a step's time within a factor of 1.5, and read MFU as "at best".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gristmill.errors import RequestError
from gristmill.model import ModelConfig
from gristmill.plan.counts import counts, flops_per_token
from gristmill.plan.memory import Memory, memory_of
from gristmill.plan.presets import Device
from gristmill.plan.settings import PRECISIONS, Recompute, Sizes, Training

EFFICIENCY = (
    0.55  # on H100: large products reach 0.7 of peak, with norms and copies between them less
)
_HEADROOM = 0.92  # of a device's memory; the rest is lost in pieces, to the driver and to NCCL
_HIDDEN = 0.8  # of the computing time that traffic can hide behind


@dataclass(frozen=True)
class Found:
    """A layout that fits. step_seconds: of a whole batch. mfu: 6N and whole attention over the devices' peak."""

    layout: Sizes
    training: Training
    memory: Memory
    step_seconds: float
    mfu: float
    bubble: float
    waiting: float  # share of the step that is spent on traffic that nothing hides


def best_layouts(
    config: ModelConfig,
    devices: int,
    device: Device,
    *,
    batch_tokens: int,
    training: Training,
    efficiency: float = EFFICIENCY,
    most: int = 5,
) -> list[Found]:
    """The fastest layouts that fit, best first; of one layout only its best settings. [] where none fits.

    training: precision, context and optimizer are kept, rows of a micro-batch and recomputation are searched.
    Raises RequestError for a batch that is no whole number of rows.
    """
    context = training.context
    if devices < 1:
        raise RequestError(f"a layout needs at least one device, not {devices}")
    if batch_tokens < context:
        raise RequestError(
            f"a batch of {batch_tokens:,} tokens holds no row of {context:,}; give more tokens or a shorter context"
        )
    batch_rows = batch_tokens // context
    found: dict[Sizes, Found] = {}
    for layout in _layouts(config, devices, device, context, batch_rows):
        rows_each = batch_rows // (layout.dp * layout.replicas)
        if _least(config, layout, training) > _HEADROOM * device.memory:
            continue
        for settings in _settings(config, training, rows_each, layout):
            memory = memory_of(config, layout, settings)
            if memory.total > _HEADROOM * device.memory:
                continue
            one = _timed(config, layout, device, settings, memory, batch_rows, efficiency)
            if layout not in found or one.step_seconds < found[layout].step_seconds:
                found[layout] = one
            if settings.recompute == "none":
                break  # more recomputation only costs time
    return sorted(found.values(), key=lambda one: (one.step_seconds, one.memory.total))[:most]


def smallest(
    config: ModelConfig, devices: int, device: Device, training: Training
) -> tuple[Sizes, float]:
    """The layout over so many devices that needs least of each, with everything recomputed; its bytes."""
    rows = devices  # each may have a row of its own
    layouts = _layouts(config, devices, device, training.context, rows)
    return min(
        ((layout, _least(config, layout, training)) for layout in layouts),
        key=lambda found: found[1],
    )


def does_not_fit(
    config: ModelConfig, devices: int, device: Device, training: Training
) -> str | None:
    """None where some layout fits; else a sentence: what is needed at least, what there is, what would do."""
    layout, need = smallest(config, devices, device, training)
    room = _HEADROOM * device.memory
    if need <= room:
        return None
    said = (
        f"needs at least {need / 1e9:,.1f} GB a device ({layout}, recompute full, one row), you have "
        f"{room / 1e9:,.1f}"
    )
    more = devices
    while more < 65_536:
        more *= 2
        layout, need = smallest(config, more, device, training)
        if need <= room:
            return f"{said}: use {more:,} devices ({need / 1e9:,.1f} GB as {layout})"
    return f"{said}: use shorter rows, another optimizer or a smaller model"


def not_split(config: ModelConfig) -> Iterator[str]:
    """What our trainer does not split of such a model, whatever the sizes: of `problems` those of its structure."""
    refused = {
        "latent attention": config.latent is not None,
        "experts": config.moe is not None,
        "attention sinks": config.attention_sinks,
        "learned positions": config.positions == "learned",
        "norms over the whole projection": config.qk_norm and config.qk_norm_over == "projection",
    }
    found = [name for name, there in refused.items() if there]
    if found:
        yield f"tp does not split {' and '.join(found)}"
    if config.tie_embeddings:
        yield "a pipeline does not tie embeddings"


def problems(layout: Sizes, config: ModelConfig, *, batch_rows: int, context: int) -> Iterator[str]:
    """Why a layout does not divide a model or its batch: the rules of `gristmill.train.parallel.layout.check`."""
    structure = list(not_split(config))
    yield from (why for why in structure if layout.tp > 1 and why.startswith("tp"))
    yield from (why for why in structure if layout.pp > 1 and why.startswith("a pipeline"))
    tp, cp, ep = layout.tp, layout.cp, layout.ep
    rows = layout.dp * layout.replicas
    if batch_rows % rows:
        yield f"the batch's {batch_rows} rows are not dealt evenly over {rows}"
    if tp > 1:
        whole = (config.num_kv_heads, config.intermediate_size, config.vocab_size)
        if any(size % tp for size in whole) or context % (tp * cp):
            yield f"tp = {tp} does not divide heads, channels, vocabulary or context"
    if cp > 1 and context % (2 * cp):
        yield f"2 x cp does not divide the context ({context})"
    if ep > 1 and (config.moe is None or config.moe.num_experts % ep or layout.dp % ep):
        yield f"ep = {ep} divides neither experts nor dp"
    if layout.pp > config.num_layers:
        yield "a pipeline needs a layer a stage"


def _layouts(
    config: ModelConfig, devices: int, device: Device, context: int, batch_rows: int
) -> Iterator[Sizes]:
    for tp in (n for n in _divisors(devices) if n <= device.node):
        for pp in (n for n in _divisors(devices // tp) if n <= config.num_layers and n <= 64):
            for cp in (n for n in _divisors(devices // tp // pp) if n == 1 or context // n >= 4096):
                ways = devices // tp // pp // cp
                # Past what the batch's rows give, or past 512 shards, copies of the whole (HSDP).
                for replicas in (n for n in _divisors(ways) if n == 1 or ways // n >= device.node):
                    dp = ways // replicas
                    for ep in _divisors(dp) if config.moe else [1]:
                        layout = Sizes(dp, replicas, tp, pp, cp, ep)
                        wrong = problems(layout, config, batch_rows=batch_rows, context=context)
                        if next(wrong, None) is None:
                            yield layout


def _least(config: ModelConfig, layout: Sizes, training: Training) -> float:
    """Bytes that the layout needs at least, whatever is recomputed."""
    sparing = replace(training, recompute="full", micro_batch_rows=1, micro_batches=2)
    return memory_of(config, layout, sparing).total


def _settings(
    config: ModelConfig, training: Training, rows_each: int, layout: Sizes
) -> Iterator[Training]:
    """Recomputation and rows of a micro-batch to try, least recomputation first, larger micro-batches first."""
    kinds: tuple[Recompute, ...] = ("none", "selective", "full")
    two_stages = layout.pp > 1 and config.num_layers >= 2 * layout.pp
    for recompute in kinds:
        for rows in (n for n in (8, 4, 2, 1) if rows_each % n == 0):
            pieces = rows_each // rows
            if layout.pp > 1 and pieces < layout.pp:
                continue
            schedule = "interleaved-1f1b" if two_stages and pieces % layout.pp == 0 else "1f1b"
            change = {"recompute": recompute, "micro_batch_rows": rows, "micro_batches": pieces}
            yield replace(training, schedule=schedule, **change)  # type: ignore[arg-type]


def _timed(
    config: ModelConfig,
    layout: Sizes,
    device: Device,
    training: Training,
    memory: Memory,
    batch_rows: int,
    efficiency: float,
) -> Found:
    precision = PRECISIONS[training.precision]
    peak = device.peak(precision.computes)
    context, world = training.context, layout.world
    whole = flops_per_token(config, context, extra=training.extra)
    seen = flops_per_token(config, context, causal=True, extra=training.extra)
    passes = {"none": 3.0, "selective": 3.0, "full": 4.0}[training.recompute]
    if training.recompute == "selective":
        passes += 0.03  # what is computed again is cheap, but not free
    split = layout.tp * layout.pp * layout.cp
    piece = training.micro_batch_rows * context  # tokens of a micro-batch, before cp
    computing = passes * seen.forward * piece / split / (peak * efficiency)
    local = piece / layout.cp  # tokens of it on a device
    D, act = config.hidden_size, precision.activations
    layers = config.num_layers / layout.pp

    waiting = 0.0
    if (
        layout.tp > 1
    ):  # a gather and a scatter for each half of a layer, forward, backward and again
        bytes_moved = layers * 4 * (passes - 1) * local * D * act * (layout.tp - 1) / layout.tp
        waiting += bytes_moved / device.link
    if layout.ep > 1 and config.moe:
        sent = local * config.moe.experts_per_token * D * act * (layout.ep - 1) / layout.ep
        inside = layout.tp * layout.cp * layout.ep <= device.node
        waiting += layers * 2 * (passes - 1) * sent / (device.link if inside else device.network)
    overlapped = 0.0
    if layout.cp > 1:
        heads, keys, values = config.cached
        ring = layers * passes * heads * (keys + values) * act * local * (layout.cp - 1)
        inside = layout.tp * layout.cp <= device.node
        overlapped += ring / (device.link if inside else device.network)
    shards = layout.dp * layout.cp
    if shards > 1:  # gathered forward and backward, gradients scattered in fp32
        held = counts(config, training.extra)
        of_rank = (held.total - held.experts + held.experts / layout.ep) / layout.tp / layout.pp
        moved = of_rank * (2 * (precision.copies or precision.weights) + 4) * (shards - 1) / shards
        inside = layout.tp * shards <= device.node
        overlapped += moved / (device.link if inside else device.network)
    waiting += max(0.0, overlapped - _HIDDEN * computing)
    pieces = batch_rows // (layout.dp * layout.replicas) // training.micro_batch_rows
    stages_each = 2 if training.schedule == "interleaved-1f1b" else 1
    turns = pieces + (layout.pp - 1) / stages_each
    seconds = turns * (computing + waiting)
    if layout.replicas > 1:  # once a step
        seconds += (
            2
            * 4
            * counts(config, training.extra).total
            / (layout.tp * layout.pp * layout.dp)
            / device.network
        )
    useful = whole.training * batch_rows * context
    return Found(
        layout,
        training,
        memory,
        seconds,
        useful / (seconds * world * peak),
        1 - pieces / turns,
        waiting / (computing + waiting),
    )


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})
