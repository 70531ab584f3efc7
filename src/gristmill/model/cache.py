"""Keys and values of earlier positions."""

from __future__ import annotations

import torch
from torch import Tensor

from gristmill.model.config import ModelConfig


class KVCache:
    """Keys and values of earlier positions, [layers, B, K, S, C] each; slot index == position.

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
        # Latent attention (MLA) caches its expanded heads, which differ in width.
        heads = config.num_heads if config.latent else config.num_kv_heads
        shape = (config.num_layers, batch, heads, capacity)
        self.keys = torch.zeros((*shape, config.head_dim), dtype=dtype, device=device)
        self.values = torch.zeros((*shape, config.value_head_dim), dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def select(self, rows: list[int] | Tensor) -> None:
        """Keep only the given rows of the batch, in the given order."""
        index = torch.as_tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]

    def update(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor, positions_BT: Tensor) -> None:
        index = positions_BT[:, None, :, None]
        self.keys[layer].scatter_(2, index.expand_as(k_BKTC), k_BKTC)
        self.values[layer].scatter_(2, index.expand_as(v_BKTC), v_BKTC)
