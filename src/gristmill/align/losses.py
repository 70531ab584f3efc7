"""Preference losses, as functions of log-probabilities summed over the tokens of a completion."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """-log σ(β [(log π_c - log π_ref,c) - (log π_r - log π_ref,r)]) of each pair (Rafailov et al. 2023).

    All inputs are float tensors [pairs] of natural-log probabilities; so is the result.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -F.logsigmoid(beta * margin)
