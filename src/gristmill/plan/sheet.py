"""A plan as plain data: what the command line prints, `--json` writes and the page lets one move. SI units."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from gristmill.plan.cost import PUBLISHED, Assumptions, training_cost, utilization
from gristmill.plan.counts import counts, flops_per_token
from gristmill.plan.inference import (
    REACHED,
    WEIGHTS,
    cache_bytes,
    cache_bytes_per_token,
    price_per_million,
    rows_that_fit,
    speculative_speedup,
    speed,
    weight_bytes,
)
from gristmill.plan.layouts import EFFICIENCY, Found, best_layouts, does_not_fit, not_split
from gristmill.plan.presets import Device, Preset, device
from gristmill.plan.settings import PRECISIONS, Training

USUAL_MFU = 0.40
USUAL_MFU_IS = "what large runs on H100 reach: Llama 3 405B reports 38 to 43%"
CONTEXTS = (2048, 8192, 32_768, 131_072)
ROWS = (1, 8, 64)
DRAFT_COST = 0.05
_LARGE_BATCH = 2**24


def model_sheet(preset: Preset, context: int) -> dict[str, Any]:
    """Parameters, FLOPs of a token in a row of `context`, bytes of its cache."""
    config, extra = preset.config, preset.extra_per_layer
    held = counts(config, extra)
    whole = flops_per_token(config, context, extra=extra)
    causal = flops_per_token(config, context, causal=True, extra=extra)
    parameters = {k: v for k, v in asdict(held).items()} | {"body": held.body}
    return {
        "name": preset.name,
        "title": preset.title,
        "source": preset.source,
        "note": preset.note,
        "published": preset.published,
        "parameters": parameters,
        "context": context,
        "flops_per_token": {
            "forward": whole.forward,
            "matrices": whole.matrices,
            "attention": whole.attention,
            "attention_causal": causal.attention,
            "training": whole.training,
            "six_n": 6.0 * held.active,
        },
        "cache_bytes_per_token": {
            cache: cache_bytes_per_token(config, cache) for cache in ("float16", "int8", "int4")
        },
    }


def training_sheet(
    preset: Preset,
    *,
    tokens: float,
    devices: int,
    machine: Device,
    training: Training,
    batch_tokens: int,
    assumed: Assumptions,
    mfu: float | None,
) -> dict[str, Any]:
    """FLOPs, the best layouts, and what the best costs: None where no layout fits. mfu None: the usual one, or the best
    layout's if less."""
    config, extra = preset.config, preset.extra_per_layer
    training = replace(training, extra=extra)
    precision = PRECISIONS[training.precision].computes
    found = best_layouts(config, devices, machine, batch_tokens=batch_tokens, training=training)
    modelled = found[0].mfu if found else None
    mfu_is = "as asked"
    if mfu is None:
        mfu, mfu_is = USUAL_MFU, USUAL_MFU_IS
        if modelled is not None and modelled < mfu:
            mfu, mfu_is = (
                modelled,
                f"the best layout's, less than the {USUAL_MFU:.0%} of large runs",
            )
    assumed = replace(assumed, mfu=mfu)
    token = flops_per_token(config, training.context, extra=extra)
    causal = flops_per_token(config, training.context, causal=True, extra=extra)
    flops = token.training * tokens
    cost = training_cost(flops, devices, machine, precision, assumed) if found else None
    lacking = None if found else does_not_fit(config, devices, machine, training)
    return {
        "tokens": tokens,
        "devices": devices,
        "device": asdict(machine),
        "training": asdict(training),
        "batch_tokens": batch_tokens,
        "flops": flops,
        "flops_6nd": 6.0 * counts(config, extra).active * tokens,
        "assumptions": asdict(assumed)
        | {
            "mfu_is": mfu_is,
            "efficiency": EFFICIENCY,
            # MFU counts attention whole and a causal kernel does about half, so it may exceed `efficiency`.
            "most_mfu": EFFICIENCY * token.forward / causal.forward,
        },
        "modelled_mfu": modelled,
        "cost": asdict(cost) if cost else None,
        "steps": tokens / batch_tokens,
        "layouts": [layout_sheet(one) for one in found],
        "does_not_fit": lacking,
        "not_split": list(not_split(config)),
        "published": _published(preset),
    }


def layout_sheet(one: Found) -> dict[str, Any]:
    memory = one.memory
    return {
        "layout": asdict(one.layout),
        "words": str(one.layout),
        "schedule": one.training.schedule if one.layout.pp > 1 else None,
        "recompute": one.training.recompute,
        "micro_batch_rows": one.training.micro_batch_rows,
        "micro_batches": one.training.micro_batches,
        "memory": memory.parts() | {"alternating": memory.alternating, "total": memory.total},
        "step_seconds": one.step_seconds,
        "mfu": one.mfu,
        "bubble": one.bubble,
        "waiting": one.waiting,
    }


def serving_sheet(
    preset: Preset,
    *,
    devices: int,
    machine: Device,
    context: int,
    rows: int,
    cache: str,
    price: float | None,
    weights: str | None = None,
    stored: float | None = None,
) -> dict[str, Any]:
    """What fits and how fast, for each form of the weights (or one). stored: bytes of them on disk."""
    config, extra = preset.config, preset.extra_per_layer
    table = []
    for form in WEIGHTS if weights is None else [weights]:
        held = weight_bytes(config, form, extra)
        fit = rows_that_fit(config, machine, form, cache, context, devices, extra)
        settings: dict[str, Any] = dict(
            weights=form, cache=cache, context=context, devices=devices, extra=extra
        )
        alone = speed(config, machine, rows=1, **settings)
        batch = speed(config, machine, rows=rows, **settings)
        table.append(
            {
                "weights": form,
                "bytes": held,
                "rows_that_fit": fit,
                "decode_alone": alone.decode,
                "decode": batch.decode,
                "bound": batch.bound,
                "prefill": batch.prefill,
                "first_token_seconds": batch.first_token_seconds,
                "price_per_million_out": price_per_million(batch.decode, price, devices),
                "price_per_million_in": price_per_million(batch.prefill, price, devices),
            }
        )
    contexts = [*(c for c in CONTEXTS if c < config.max_seq_len), config.max_seq_len]
    return {
        "devices": devices,
        "device": asdict(machine),
        "context": context,
        "rows": rows,
        "cache": cache,
        "reached": REACHED,
        "price_per_device_hour": price,
        "stored_bytes": stored,
        "weights": table,
        "cache_bytes": [
            {"context": c, "bytes": {str(r): cache_bytes(config, c, r, cache) for r in ROWS}}
            for c in contexts
        ],
        "speculative": [
            {
                "acceptance": acceptance,
                "drafts": drafts,
                "speedup": speculative_speedup(acceptance, drafts, DRAFT_COST),
            }
            for acceptance, drafts in ((0.5, 2), (0.6, 3), (0.7, 4), (0.8, 4), (0.9, 6))
        ],
        "draft_cost": DRAFT_COST,
    }


def usual_batch(tokens: float, devices: int, context: int) -> int:
    """Tokens of a batch: grown with the training's tokens (arXiv 2505.13738), and a row for each device up to 16M
    tokens; beyond, a row for eight of them, which then share it."""
    by_tokens = 1024 * (tokens / 4e6) ** 0.383
    rows = max(by_tokens / context, min(devices, _LARGE_BATCH / context), devices / 8)
    odd = devices
    while odd % 2 == 0:
        odd //= 2
    return odd * 2 ** math.ceil(math.log2(max(1.0, rows / odd))) * context


def _published(preset: Preset) -> dict[str, Any] | None:
    """What the model's own card says it took, and the utilization that it implies."""
    for name, on, hours, tokens in PUBLISHED:
        if name == preset.name:
            machine = device(on)
            flops = 6.0 * counts(preset.config).active * tokens
            share = utilization(flops, hours, machine)
            return {"device": on, "device_hours": hours, "tokens": tokens, "utilization": share}
    return None
