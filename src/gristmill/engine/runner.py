"""What runs a step: the native program where it can, PyTorch elsewhere; and how large its cache may be."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from gristmill.engine.native import NativeRunner
from gristmill.engine.ragged import RaggedBatch
from gristmill.engine.torch_runner import TorchRunner
from gristmill.errors import RequestError
from gristmill.machine import available_memory
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
    return available_memory()
