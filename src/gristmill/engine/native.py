"""The whole forward pass in native code over the paged cache; the same bits for a row whatever runs beside it.

PyTorch's matrix products and attention round a row differently in batches of other sizes. Here every sum has an
order that depends on its own row alone (src/native/kernels.h), so that a request gives the same logits alone, among
others, cut into chunks, after a prefix was found in the cache, and when drafts are verified. The weights are the
network's own tensors; activations and sums are fp32 whatever their type. Keys and values are kept in the form that
the runner is given (`kept`).
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from gristmill.engine.kept import CACHE_DTYPES, CacheDtype
from gristmill.engine.native_program import CacheMemory, build, obstacle
from gristmill.engine.ragged import RaggedBatch
from gristmill.errors import RequestError
from gristmill.kernels import extension, why_missing
from gristmill.model import ModelConfig, Transformer

_LANES = 16
_WORTH_HUGE_PAGES = 64 << 20  # bytes


class NativeRunner:
    """Runs ragged batches of a network that `unsupported` has nothing against. One thread at a time may use it.

    block_size: tokens of a cache block, a multiple of 16. cache_dtype: how keys and values are kept. layers: only so
    many of the first ones, then the final norm and the head. shared: a runner whose cache this one uses too, block
    ids, form and all. isa: "best", or the name of an instruction set for tests.
    """

    name = "native"
    exact = True

    def __init__(
        self,
        network: Transformer,
        num_blocks: int,
        block_size: int,
        cache_dtype: CacheDtype = "float32",
        layers: int | None = None,
        shared: NativeRunner | None = None,
        isa: str = "best",
    ) -> None:
        if block_size % _LANES:
            raise ValueError(f"block_size must be a multiple of {_LANES}, not {block_size}")
        self._network, self._isa = network, isa
        self._layers = network.config.num_layers if layers is None else layers
        if shared is not None:
            self._cache = shared._cache
        else:
            sizes = _block_bytes(network.config, block_size, cache_dtype)
            keys, values = (_memory(network.config.num_layers, num_blocks, n) for n in sizes)
            self._cache = CacheMemory(keys, values, cache_dtype, block_size)
        self.refresh()

    @staticmethod
    def unsupported(network: Transformer) -> str | None:
        """Why the native path cannot run this network, in words; None if it can."""
        return why_missing if extension is None else obstacle(network)

    @staticmethod
    def block_bytes(network: Transformer, block_size: int, cache_dtype: CacheDtype) -> int:
        """Of one block in all layers. Raises RequestError for a network that it cannot run."""
        _check(network)
        layer = sum(_block_bytes(network.config, block_size, cache_dtype))
        return network.config.num_layers * layer

    def refresh(self) -> None:
        """Adapters or tensors of the network were replaced by others: find them anew.

        Raises RequestError where native code cannot run what the network has become (an adapter with DoRA).
        """
        _check(self._network)
        self._program = build(self._network, self._layers, self._cache, self._isa)

    def hidden(self, batch: RaggedBatch) -> Tensor:
        """Final normed hidden states of the wanted tokens, float32 [W, D]; keys and values go into the cache."""
        hidden = torch.empty(len(batch.wanted_W), self._network.config.hidden_size)
        adapters = self._adapters(batch)
        arrays = (
            batch.tokens_N,
            batch.positions_N,
            batch.slots_N,
            batch.starts,
            batch.tables_RB,
            batch.lengths_R,
            batch.wanted_W,
        )
        self._program.native.run(
            len(batch.tokens_N),
            len(batch.lengths_R),
            batch.tables_RB.shape[1],
            len(batch.wanted_W),
            *(a.ctypes.data for a in arrays),
            0 if adapters is None else adapters.ctypes.data,
            hidden.data_ptr(),
            torch.get_num_threads(),
        )
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits, float32 [W, V]."""
        config = self._network.config
        hidden = hidden.contiguous()
        logits = torch.empty(len(hidden), config.vocab_size)
        self._program.native.logits(
            self._program.head,
            config.logit_softcap or 0.0,
            hidden.data_ptr(),
            logits.data_ptr(),
            len(hidden),
            torch.get_num_threads(),
        )
        return logits

    def copy_block(self, source: int, target: int) -> None:
        for kept in (self._cache.keys, self._cache.values):
            kept[:, target] = kept[:, source]

    def seconds(self) -> dict[str, float]:
        """Time spent in each kind of operation since the last refresh."""
        return self._program.native.seconds()

    def _adapters(self, batch: RaggedBatch) -> np.ndarray | None:
        """The number of each request's adapter, -1 for none; None where no request has one.

        A request that names none gets the adapter that is active on the network, as the network's own forward does.
        """
        numbers, active = self._program.adapters, self._program.active
        if active is None and not any(batch.adapters):
            return None
        chosen = [name or active for name in batch.adapters]
        return np.array([-1 if name is None else numbers[name] for name in chosen], dtype=np.int32)


def _check(network: Transformer) -> None:
    why_not = NativeRunner.unsupported(network)
    if why_not:
        raise RequestError(f"the native runner cannot run this model: {why_not}")


def _block_bytes(config: ModelConfig, block_size: int, cache_dtype: CacheDtype) -> tuple[int, int]:
    """Of the keys and of the values of one block in one layer."""
    assert extension is not None
    heads, head_dim, _ = config.cached
    return extension.block_bytes(CACHE_DTYPES.index(cache_dtype), block_size, heads, head_dim)


def _memory(*shape: int) -> Tensor:
    """Bytes of this shape, in pages that cost nothing before they are written to.

    Huge pages where the system gives them: a head's part of a block fills one small page, so that every one of them
    would miss in the translation tables.
    """
    size = math.prod(shape)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= _WORTH_HUGE_PAGES:
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).view(shape)
