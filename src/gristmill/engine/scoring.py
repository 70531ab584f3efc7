"""Log-probabilities of given tokens after given hidden states. Shapes: D hidden, N positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.model import Transformer

LOGIT_BYTES = 64 << 20  # fp32 logits in memory at once; those of a whole pass never exist together


def target_logprobs(network: Transformer, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """log p(target) after each final hidden state, float32 [N]; logits exist a slice at a time."""
    rows = max(1, LOGIT_BYTES // (4 * network.config.vocab_size))
    parts = [
        -F.cross_entropy(network.logits(hidden), targets, reduction="none")
        for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    ]
    return torch.cat(parts)
