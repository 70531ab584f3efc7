"""The network's own modules over the paged cache: any model, dtype and device.

The twin of `native.NativeRunner`, and what runs where that one cannot. PyTorch's matrix products round a row
differently in batches of different sizes, so results here are equal within rounding, not bit for bit.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from gristmill.adapters import adapters_by_row
from gristmill.engine.kept import CacheDtype, decode, encode, shapes
from gristmill.engine.ragged import RaggedBatch
from gristmill.kernels import triton
from gristmill.model import SLIDING, Transformer, attend, causal


class TorchRunner:
    """Runs ragged batches. Every token is a row of its own, so that each may have its own adapter."""

    name = "torch"
    exact = False

    def __init__(
        self,
        network: Transformer,
        num_blocks: int,
        block_size: int,
        cache_dtype: CacheDtype = "float32",
    ) -> None:
        self._network = network
        self._cache = PagedKV(network, num_blocks, block_size, cache_dtype)

    @staticmethod
    def unsupported(network: Transformer) -> str | None:
        """Why this network cannot generate, in words; None if it can."""
        if any(".kv_b_proj.lora." in name for name, _ in network.named_parameters()):
            return (
                "an adapter on kv_b_proj cannot generate: its weight is used as a matrix; merge it"
            )
        return None

    @staticmethod
    def block_bytes(network: Transformer, block_size: int, cache_dtype: CacheDtype) -> int:
        """Of one block in all layers."""
        heads, *widths = network.config.cached
        dtype = network.model.norm.weight.dtype
        parts = [part for width in widths for part in shapes(width, cache_dtype, dtype)]
        token = heads * sum(size * kind.itemsize for size, kind in parts)
        return network.config.num_layers * block_size * token

    @torch.inference_mode()
    def hidden(self, batch: RaggedBatch) -> Tensor:
        """Final normed hidden states of the wanted tokens, [W, D]; keys and values go into the cache."""
        device = self._network.model.norm.weight.device
        counts = np.diff(batch.starts)
        names = np.repeat(np.array(batch.adapters, dtype=object), counts).tolist()
        chosen = adapters_by_row(self._network, names) if any(names) else nullcontext()
        self._cache.begin(batch)
        with chosen:
            hidden_N1D = self._network.hidden(
                torch.from_numpy(batch.tokens_N)[:, None].long().to(device),
                cache=self._cache,
                positions_BT=torch.from_numpy(batch.positions_N)[:, None].long().to(device),
                lengths_B=torch.from_numpy(np.repeat(batch.lengths_R, counts)).to(device),
            )
        return hidden_N1D[torch.from_numpy(batch.wanted_W).long().to(device), 0]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [W, V], fp32."""
        return self._network.logits(hidden)

    def copy_block(self, source: int, target: int) -> None:
        self._cache.copy(source, target)

    def refresh(self) -> None:
        """The network changed; nothing of it is kept here."""


class PagedKV:
    """Keys and values by slot: what `encode` makes of them, [layers, blocks · block_size, K, …] each."""

    def __init__(
        self, network: Transformer, num_blocks: int, block_size: int, kept: CacheDtype
    ) -> None:
        self._config, self._block_size = network.config, block_size
        self._kept: CacheDtype = kept
        weight, (heads, *self._widths) = network.model.norm.weight, network.config.cached
        shape = (network.config.num_layers, num_blocks * block_size, heads)
        plain = kept in ("float32", "float16") and max(self._widths) <= triton.WIDEST
        # Queries that are alone in their request read the cache where it lies.
        self._paged = plain and triton.takes(weight)
        # Unused slots are read under the mask, so they must be finite.
        self.keys, self.values = (
            [_zeros((*shape, size), dtype, weight.device) for size, dtype in sizes]
            for sizes in (shapes(width, kept, weight.dtype) for width in self._widths)
        )

    def begin(self, batch: RaggedBatch) -> None:
        """Lay out a step: requests with equally many tokens attend together."""
        device = self.keys[0].device
        counts = np.diff(batch.starts)
        self._slots = torch.from_numpy(batch.slots_N).long().to(device)
        # (rows of the batch [R], tables of their requests [R, B], their last position of all)
        self._alone: tuple[Tensor, Tensor, int] | None = None
        if self._paged and (counts == 1).any():
            members = np.flatnonzero(counts == 1)
            rows, tables = batch.starts[members], batch.tables_RB[members]
            longest = int(batch.positions_N[rows].max())
            rows = torch.from_numpy(rows).long().to(device)
            self._alone = rows, torch.from_numpy(tables).to(device), longest
        # (rows of the batch [R, T], slots that each request has [R, S])
        self._groups: list[tuple[Tensor, Tensor]] = []
        # Together: as many tokens, and about as long, lest one long request make all as dear as itself.
        longest = np.ceil(np.log2(batch.positions_N[batch.starts[1:] - 1] + 1)).astype(np.int64)
        kinds, kind_of = np.unique(np.stack((counts, longest)), axis=1, return_inverse=True)
        for kind, count in enumerate(kinds[0]):
            if self._paged and count == 1:
                continue
            members = np.flatnonzero(kind_of.ravel() == kind)
            rows = batch.starts[members][:, None] + np.arange(count)
            blocks = batch.positions_N[rows].max() // self._block_size + 1
            first = batch.tables_RB[members, :blocks] * self._block_size
            slots = (first[:, :, None] + np.arange(self._block_size)).reshape(len(members), -1)
            groups = torch.from_numpy(rows).long(), torch.from_numpy(slots).long()
            self._groups.append((groups[0].to(device), groups[1].to(device)))

    def attend(
        self,
        layer: int,
        q_BHTC: Tensor,
        k_BKTC: Tensor,
        v_BKTC: Tensor,
        positions_BT: Tensor,
        sinks_H: Tensor | None,
    ) -> Tensor:
        """Rows of the batch are the step's tokens: B == N, T == 1."""
        config = self._config
        for kept, new in ((self.keys, k_BKTC), (self.values, v_BKTC)):
            for tensor, part in zip(kept, encode(new[:, :, 0], self._kept), strict=True):
                tensor[layer, self._slots] = part
        window = config.sliding_window if config.layer_type(layer) == SLIDING else None
        softcap = config.attention_softcap
        out = q_BHTC.new_empty(*q_BHTC.shape[:3], v_BKTC.shape[-1])
        if self._alone is not None:
            from gristmill.kernels.triton.attention import paged_attention_triton

            rows_R, tables_RB, longest = self._alone
            out[rows_R, :, 0] = paged_attention_triton(
                q_BHTC[rows_R, :, 0],
                self.keys[0][layer],
                self.values[0][layer],
                tables_RB,
                positions_BT[rows_R, 0],
                longest,
                self._block_size,
                config.score_scale,
                window,
                softcap,
                sinks_H,
            )
        for rows_RT, slots_RS in self._groups:
            q = q_BHTC[rows_RT][:, :, :, 0].transpose(1, 2)
            k, v = (
                decode(tuple(t[layer, slots_RS] for t in kept), width).to(q.dtype).transpose(1, 2)
                for kept, width in zip((self.keys, self.values), self._widths, strict=True)
            )
            seen = torch.arange(slots_RS.shape[1], device=q.device)
            mask = causal(positions_BT[rows_RT, 0], seen, window)
            attended = attend(q, k, v, mask, config.score_scale, softcap, sinks_H)
            out[rows_RT, :, 0] = attended.transpose(1, 2)
        return out

    def copy(self, source: int, target: int) -> None:
        size = self._block_size
        for kept in (*self.keys, *self.values):
            kept[:, target * size : (target + 1) * size] = kept[
                :, source * size : (source + 1) * size
            ]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU by numpy, which leaves untouched pages to the system: torch writes every zero."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)
