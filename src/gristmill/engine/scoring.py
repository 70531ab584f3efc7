"""Log-probabilities of given texts, batched by length. Shapes: T tokens, D hidden, N positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.engine.batch import groups_by_length, padded
from gristmill.model import Transformer

LOGIT_BYTES = 64 << 20  # fp32 logits in memory at once; those of a whole pass never exist together


@torch.inference_mode()
def text_logprobs(network: Transformer, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """For each row of n tokens, the n - 1 log-probabilities of its second to last token."""
    results: list[list[float]] = [[] for _ in rows]
    scored = [i for i, row in enumerate(rows) if len(row) > 1]
    lengths = [len(row) for row in rows]
    for group in groups_by_length(scored, lengths, network.config.frequency_switch):
        tokens_BT = padded([rows[i] for i in group]).to(network.head_weight.device)
        hidden = network.hidden(tokens_BT)
        counts = [len(rows[i]) - 1 for i in group]
        hidden_ND = torch.cat([hidden[b, :n] for b, n in enumerate(counts)])
        targets_N = torch.cat([tokens_BT[b, 1 : n + 1] for b, n in enumerate(counts)])
        values = target_logprobs(network, hidden_ND, targets_N).split(counts)
        for i, value in zip(group, values, strict=True):
            results[i] = value.tolist()
    return results


def target_logprobs(network: Transformer, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """log p(target) after each final hidden state, float32 [N]; logits exist a slice at a time."""
    rows = max(1, LOGIT_BYTES // (4 * network.config.vocab_size))
    parts = [
        -F.cross_entropy(network.logits(hidden), targets, reduction="none")
        for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    ]
    return torch.cat(parts)
