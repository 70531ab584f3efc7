"""How much each input of a layer matters: the mean of its squared activations, llama.cpp's "importance matrix"."""

from __future__ import annotations

import torch
from torch import Tensor


class Importance:
    """Mean of x² over tokens for each input [in], fp32; what `formats.gguf.quantize` takes as `importance`."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.mean = torch.zeros(width, device=device)
        self.tokens = 0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """x [tokens, in]: what a layer was given. The caller leaves padding out."""
        if len(x) == 0:
            return
        self.tokens += len(x)
        # A running mean: a sum over a long text would leave small channels behind.
        self.mean.lerp_(x.float().square().mean(0), len(x) / self.tokens)
