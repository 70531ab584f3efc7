"""Whether two copies of a model say the same: next-token distributions on a probe text, ids, chat format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gristmill.formats.model import Model

PROBE = """\
The library opens at nine. "Have you read this one?" she asked, and put 3 books on the table.

def mean(values: list[float]) -> float:
    total = 0.0
    for value in values:  # naïve, but exact enough
        total += value
    return total / len(values)

Water boils at 100 °C at sea level; on a mountain of 4,000 m it boils at about 86 °C. Why is that?
"""

# Mean KL divergence (nats a token) that a type costs at most: twice the most that was measured on the probe, with
# models of 260K and 4M parameters (docs/performance.md). Large models suffer less from rounding than small ones.
KNOWN_ERROR = {
    "F32": 1e-6,
    "F16": 1e-4,
    "BF16": 1e-3,
    "Q8_0": 1e-2,
    "Q6_K": 0.05,
    "Q5_K_M": 0.2,
    "Q5_K_S": 0.2,
    "Q4_K_M": 0.5,
    "Q4_K_S": 0.5,
    "Q4_0": 1.5,
}


@dataclass(frozen=True)
class Sample:
    """What a model makes of the probe: ids, log-probabilities [T, V] in fp32, and its chat format."""

    ids: tuple[int, ...]
    logprobs: Tensor
    chat_template: str | None
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class Parity:
    """How far a copy is from the original on the probe.

    max_difference: of log-probabilities. kl: mean KL(original ‖ copy), nats a token. same_top: share of
    positions with the same likeliest token. same_ids, same_chat: the probe's ids, and the chat template with the
    tokens that end a turn, are the same.
    """

    tokens: int
    max_difference: float
    kl: float
    same_top: float
    same_ids: bool
    same_chat: bool


@torch.inference_mode()
def sample(model: Model, ids: tuple[int, ...] | None = None, probe: str = PROBE) -> Sample:
    """Read the probe (or the given ids) with float32 activations, whatever dtype the weights have."""
    own = tuple(model.tokenizer.prompt_ids(probe))
    read = (own if ids is None else ids)[: model.config.max_seq_len]
    tokens = torch.tensor([read], device=model.device)
    logits = model.network(tokens, dtype=torch.float32)[0].cpu()
    tokenizer = model.tokenizer
    template = tokenizer.config.get("chat_template")
    return Sample(
        own,
        logits.log_softmax(-1),
        tokenizer.chat_template if template is not None else None,
        tokenizer.stop_ids,
    )


def compare(before: Sample, after: Sample) -> Parity:
    """Over the positions that both have: a copy's context may be shorter."""
    count = min(len(before.logprobs), len(after.logprobs))
    p, q = before.logprobs[:count], after.logprobs[:count]
    kl = (p.exp() * (p - q)).sum(-1).mean()
    same_chat = (before.chat_template, before.stop_ids) == (after.chat_template, after.stop_ids)
    return Parity(
        tokens=count,
        max_difference=float((p - q).abs().max()),
        kl=max(float(kl), 0.0),
        same_top=float((p.argmax(-1) == q.argmax(-1)).float().mean()),
        same_ids=before.ids == after.ids,
        same_chat=same_chat,
    )
