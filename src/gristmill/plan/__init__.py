"""Counts parameters, FLOPs, bytes, time and money of a model, a layout and a device, before anything is paid for."""

from gristmill.plan.cost import Assumptions, Cost, training_cost, utilization
from gristmill.plan.counts import Counts, Flops, counts, flops_per_token
from gristmill.plan.inference import (
    cache_bytes,
    cache_bytes_per_token,
    rows_that_fit,
    speculative_speedup,
    speed,
    weight_bytes,
)
from gristmill.plan.layouts import Found, best_layouts
from gristmill.plan.memory import Memory, memory_of, training_memory
from gristmill.plan.page import explorable
from gristmill.plan.presets import Device, Preset, device, devices, model, presets
from gristmill.plan.settings import Sizes, Training
from gristmill.plan.sheet import model_sheet, serving_sheet, training_sheet, usual_batch
from gristmill.plan.shortage import shortage

__all__ = [
    "Assumptions",
    "Cost",
    "Counts",
    "Device",
    "Flops",
    "Found",
    "Memory",
    "Preset",
    "Sizes",
    "Training",
    "best_layouts",
    "cache_bytes",
    "cache_bytes_per_token",
    "counts",
    "device",
    "devices",
    "explorable",
    "flops_per_token",
    "memory_of",
    "model",
    "model_sheet",
    "presets",
    "rows_that_fit",
    "serving_sheet",
    "shortage",
    "speculative_speedup",
    "speed",
    "training_cost",
    "training_memory",
    "training_sheet",
    "usual_batch",
    "utilization",
    "weight_bytes",
]
