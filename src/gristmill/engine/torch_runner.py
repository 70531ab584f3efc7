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
from gristmill.engine.ragged import RaggedBatch
from gristmill.model import SLIDING, Transformer, attend, causal


class TorchRunner:
    """Runs ragged batches. Every token is a row of its own, so that each may have its own adapter."""

    name = "torch"
    exact = False

    def __init__(self, network: Transformer, num_blocks: int, block_size: int) -> None:
        self._network = network
        self._cache = PagedKV(network, num_blocks, block_size)

    @staticmethod
    def block_bytes(network: Transformer, block_size: int) -> int:
        """Of one block in all layers."""
        heads, key_width, value_width = network.config.cached
        size = network.head_weight.element_size()
        return network.config.num_layers * block_size * heads * (key_width + value_width) * size

    @torch.inference_mode()
    def hidden(self, batch: RaggedBatch) -> Tensor:
        """Final normed hidden states of the wanted tokens, [W, D]; keys and values go into the cache."""
        device = self._network.head_weight.device
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
    """Keys and values by slot, [layers, blocks · block_size, K, C] each."""

    def __init__(self, network: Transformer, num_blocks: int, block_size: int) -> None:
        self._config, self._block_size = network.config, block_size
        weight, (heads, key_width, value_width) = network.head_weight, network.config.cached
        shape = (network.config.num_layers, num_blocks * block_size, heads)
        # Unused slots are read under the mask, so they must be finite.
        self.keys = _zeros((*shape, key_width), weight)
        self.values = _zeros((*shape, value_width), weight)

    def begin(self, batch: RaggedBatch) -> None:
        """Lay out a step: requests with equally many tokens attend together."""
        device = self.keys.device
        counts = np.diff(batch.starts)
        self._slots = torch.from_numpy(batch.slots_N).long().to(device)
        # (rows of the batch [R, T], slots that each request has [R, S])
        self._groups: list[tuple[Tensor, Tensor]] = []
        # Together: as many tokens, and about as long, lest one long request make all as dear as itself.
        longest = np.ceil(np.log2(batch.positions_N[batch.starts[1:] - 1] + 1)).astype(np.int64)
        kinds, kind_of = np.unique(np.stack((counts, longest)), axis=1, return_inverse=True)
        for kind, count in enumerate(kinds[0]):
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
        self.keys[layer, self._slots] = k_BKTC[:, :, 0]
        self.values[layer, self._slots] = v_BKTC[:, :, 0]
        window = config.sliding_window if config.layer_type(layer) == SLIDING else None
        out = q_BHTC.new_empty(*q_BHTC.shape[:3], v_BKTC.shape[-1])
        for rows_RT, slots_RS in self._groups:
            q = q_BHTC[rows_RT][:, :, :, 0].transpose(1, 2)
            k = self.keys[layer, slots_RS].transpose(1, 2)
            v = self.values[layer, slots_RS].transpose(1, 2)
            seen = torch.arange(slots_RS.shape[1], device=q.device)
            mask = causal(positions_BT[rows_RT, 0], seen, window)
            softcap = config.attention_softcap
            attended = attend(q, k, v, mask, config.score_scale, softcap, sinks_H)
            out[rows_RT, :, 0] = attended.transpose(1, 2)
        return out

    def copy(self, source: int, target: int) -> None:
        size = self._block_size
        for kept in (self.keys, self.values):
            kept[:, target * size : (target + 1) * size] = kept[
                :, source * size : (source + 1) * size
            ]


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """On the CPU by numpy, which leaves untouched pages to the system: torch writes every zero."""
    if not like.is_cpu:
        return like.new_zeros(shape)
    size = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.zeros(size, np.uint8)).view(like.dtype).view(shape)
