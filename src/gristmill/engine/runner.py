"""What runs a step: the native program where it can, PyTorch elsewhere; and how large its cache may be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from gristmill.engine.native import NativeRunner
from gristmill.engine.ragged import RaggedBatch
from gristmill.engine.torch_runner import TorchRunner
from gristmill.errors import RequestError
from gristmill.model import Transformer

RunnerKind = Literal["auto", "native", "torch"]
_SHARE = 0.4  # of the memory that is free when the engine starts, for the cache


class Runner(Protocol):
    """Computes ragged batches over a paged cache that it owns. `exact`: a row's bits depend on no other row."""

    name: str
    exact: bool

    def hidden(self, batch: RaggedBatch) -> Tensor:
        """Keys and values of all tokens into the cache; final normed states of the wanted ones, [W, D]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [W, V], fp32."""
        ...

    def copy_block(self, source: int, target: int) -> None: ...

    def refresh(self) -> None:
        """Tensors or adapters of the network were replaced by others."""
        ...


def runner_class(network: Transformer, kind: RunnerKind) -> type[NativeRunner] | type[TorchRunner]:
    """The native one says itself, when it is made, why it cannot run a network for which it was asked by name."""
    if kind == "native" or (kind == "auto" and not NativeRunner.unsupported(network)):
        return NativeRunner
    return TorchRunner


def num_blocks(
    cache_tokens: int | Literal["auto"],
    block_size: int,
    block_bytes: int,
    context: int,
    max_rows: int,
    device: torch.device,
) -> int:
    """Blocks of the cache: for so many tokens, or what every row at full context needs, if that much is free."""
    if cache_tokens != "auto":
        return -(-cache_tokens // block_size)
    everything = max_rows * -(-context // block_size)
    affordable = int(_SHARE * free_bytes(device)) // block_bytes
    if affordable < 1:
        raise RequestError(
            f"no memory is left for the key-value cache: a block of {block_size} tokens needs "
            f"{block_bytes / 2**20:.1f} MiB; free some memory, keep keys and values narrower (cache_dtype), or take "
            "a smaller or quantized model"
        )
    return min(everything, affordable)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had: of the GPU, or of this process's share of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:  # what the kernel would give back counts as free
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit():
            used = int((group / "memory.current").read_text())
            free = min(free, max(0, int(limit) - used))
    except (OSError, StopIteration, ValueError):
        pass
    return free
