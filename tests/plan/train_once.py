"""Run as a program: the memory that steps of training take at their peak, in bytes above what stood before each.

argv[1]: a JSON list of objects with config, dtype, rows, context, recompute, micro_batches, native. Linux.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from gristmill.kernels import training as kernels
from gristmill.model import ModelConfig, Transformer, initialize
from gristmill.train.loss import linear_cross_entropy
from gristmill.train.parallel.sharding import recompute_block


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def made(config: ModelConfig, recompute: Any) -> tuple[Transformer, torch.optim.AdamW]:
    network = initialize(Transformer(config), 0)
    if recompute != "none":
        for block in network.model.layers:
            recompute_block(block, recompute)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    for p in network.parameters():
        moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        optimizer.state[p] = {"step": torch.zeros(()), **moments}
    return network, optimizer


def step(network: Transformer, optimizer: Any, tokens: torch.Tensor, pieces: int, dtype: Any):
    for part in tokens.chunk(pieces):
        hidden = network.hidden(part[:, :-1], dtype=dtype)
        targets = part[:, 1:].flatten()
        linear_cross_entropy(hidden.flatten(0, 1), network.head.weight, targets)[0].backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def measured(settings: dict[str, Any]) -> int:
    kernels.extension = EXTENSION if settings["native"] else None
    dtype, recompute = getattr(torch, settings["dtype"]), settings["recompute"]
    shape = settings["config"]
    tokens = torch.arange(settings["rows"] * (settings["context"] + 1)) % shape["vocab_size"]
    tokens = tokens.view(settings["rows"], -1)
    tiny = {"num_layers": 1, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    network, optimizer = made(ModelConfig(**{**shape, **tiny}), recompute)
    step(network, optimizer, tokens[:, :33] % 64, 1, dtype)  # libraries take what they keep
    del network, optimizer
    before = resident()
    network, optimizer = made(ModelConfig(**shape), recompute)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    step(network, optimizer, tokens, settings["micro_batches"], dtype)
    return peak() - before


EXTENSION = kernels.extension

if __name__ == "__main__":
    libc = ctypes.CDLL("libc.so.6")
    for option in (-1, -3):  # freed memory goes back to the system at once
        libc.mallopt(option, 65_536)
    print(json.dumps([measured(settings) for settings in json.loads(sys.argv[1])]))
