"""SmoothQuant (Xiao et al., arXiv 2211.10438): move outliers from activations into weights before 8-bit rounding.

Activations have a few channels that are far larger than the others, and one scale a token cannot hold both. The
scales are folded as AWQ's are (`awq.scale_pairs`, `awq.fold`); then `quantize_rows` rounds weights per output
channel, and activations [tokens, in] per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def smooth_scales(x_absmax: Tensor, weights: Sequence[Tensor], alpha: float = 0.5) -> Tensor:
    """s [in] = max|x|^alpha / max|w|^(1 − alpha): what weights are multiplied with and inputs divided by.

    x_absmax [in] over the calibration text; weights [out, in] each, of all layers that read x. alpha 0 leaves the
    difficulty in the activations, 1 moves all of it into the weights. Channels that are 0 on a side keep s = 1.
    """
    x_absmax = x_absmax.float()
    w_absmax = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0)
    scale = (x_absmax**alpha / w_absmax ** (1 - alpha)).clamp(min=1e-5)
    return torch.where((x_absmax > 0) & (w_absmax > 0), scale, 1.0)
