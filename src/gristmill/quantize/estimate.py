"""What a run will take: its time from one pass through the first block and one matrix product, timed now; its memory
from shapes. Expect a factor of two, not more digits."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from gristmill.machine import resident_memory
from gristmill.model import Linear, Transformer
from gristmill.quantize.layerwise import linear, stages, widened
from gristmill.quantize.methods import JUDGED_TOKENS
from gristmill.quantize.stream import IN_MEMORY_BYTES, Stream

# Passes of all windows through a block: one on, and the beginnings that each stage needs (a stage sees its input
# before the rest is computed; 2.3 for the four stages of a decoder block, 0.9 for the last of them, as AWQ does).
_PASSES = {"gptq": 3.3, "awq": 1.9, "smoothquant": 2.0, "importance": 2.0, "rtn": 0.0}
_SWEEP_EFFICIENCY = 0.25  # of GPTQ's sweep, against a large matrix product
_ROUNDING_SECONDS = 2e-9  # a weight, each time that it is rounded and put back, on one core
_AWQ_TRIES = 21


@dataclass(frozen=True)
class Estimate:
    seconds: float
    memory_bytes: int


@torch.no_grad()
def estimate(
    network: Transformer,
    method: str,
    bits: int,
    windows: Tensor | None,
    stream: Stream | None,
    left: int,
) -> Estimate:
    """For one of the methods above; `stream` stands before the first block, and `left` are not finished."""
    block = widened(network, 0)
    layers = [module for module in block.modules() if isinstance(module, Linear)]
    weights = sum(layer.weight.numel() for layer in layers)
    blocks = network.config.num_layers
    width = max(layer.in_features for layer in layers)
    held = 2 * 4 * weights + blocks * weights * bits // 8
    rounding = weights * _ROUNDING_SECONDS
    if windows is None or stream is None:
        return Estimate(left * 2 * rounding, resident_memory() + held)
    batch = next(iter(stream.batches()))
    block(batch[:1], stream.context)  # warm
    begun = time.perf_counter()
    block(batch, stream.context)
    token_seconds = (time.perf_counter() - begun) / (batch.shape[0] * batch.shape[1])
    flops = _flops(width)
    seconds = _PASSES[method] * token_seconds * windows.numel()
    if method == "gptq":
        held += 3 * 4 * width * width
        for stage in stages(block):
            inputs = linear(block, stage[0]).in_features
            outputs = sum(linear(block, name).out_features for name in stage)
            seconds += 2 * windows.numel() * inputs**2 / flops
            seconds += (inputs**3 + 2 * outputs * inputs**2) / flops / _SWEEP_EFFICIENCY
    if method == "awq":
        seconds += _AWQ_TRIES * (rounding + token_seconds * min(JUDGED_TOKENS, windows.numel()))
    activations = 4 * windows.numel() * network.config.hidden_size
    held += activations if activations <= IN_MEMORY_BYTES else 0
    on = (blocks - left) * token_seconds * windows.numel()
    return Estimate(on + left * (seconds + 2 * rounding), resident_memory() + held)


def _flops(width: int) -> float:
    """Floating-point operations a second of a matrix product of that width, at most 2,048."""
    a = torch.ones(1024, min(width, 2048))
    torch.mm(a, a.T)  # warm
    begun = time.perf_counter()
    torch.mm(a, a.T)
    return 2 * 1024 * 1024 * a.shape[1] / (time.perf_counter() - begun)
