"""Keys and values of earlier positions."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from gristmill.model.config import SLIDING, ModelConfig
from gristmill.model.scores import attend, causal


class Cache(Protocol):
    """What attention asks of a cache, whatever its layout."""

    def attend(
        self,
        layer: int,
        q_BHTC: Tensor,
        k_BKTC: Tensor,
        v_BKTC: Tensor,
        positions_BT: Tensor,
        sinks_H: Tensor | None,
    ) -> Tensor:
        """Keep the new keys and values, and attend to all that each query may see: [B, H, T, C of v]."""
        ...


class KVCache:
    """A dense cache, [layers, B, K, S, C] for keys and values each; slot index == position.

    A query at position p sees slots 0..p of its own row. So rows of unequal length are padded on the right:
    what lies beyond a row's length is never seen, and is overwritten when the row grows.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._config = config
        heads, key_width, value_width = config.cached
        shape = (config.num_layers, batch, heads, capacity)
        self.keys = torch.zeros((*shape, key_width), dtype=dtype, device=device)
        self.values = torch.zeros((*shape, value_width), dtype=dtype, device=device)

    def select(self, rows: list[int] | Tensor) -> None:
        """Keep only the given rows of the batch, in the given order."""
        index = torch.as_tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]

    def attend(
        self,
        layer: int,
        q_BHTC: Tensor,
        k_BKTC: Tensor,
        v_BKTC: Tensor,
        positions_BT: Tensor,
        sinks_H: Tensor | None,
    ) -> Tensor:
        config, index = self._config, positions_BT[:, None, :, None]
        self.keys[layer].scatter_(2, index.expand_as(k_BKTC), k_BKTC)
        self.values[layer].scatter_(2, index.expand_as(v_BKTC), v_BKTC)
        sliding = config.layer_type(layer) == SLIDING
        seen = torch.arange(int(positions_BT.max()) + 1, device=positions_BT.device)
        mask = causal(positions_BT, seen, config.sliding_window if sliding else None)
        k, v = self.keys[layer, :, :, : len(seen)], self.values[layer, :, :, : len(seen)]
        softcap = config.attention_softcap
        return attend(q_BHTC, k, v, mask, config.score_scale, softcap, sinks_H)
