"""What a model expects: the distribution over the next token, and how surprised it is by a given text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gristmill.errors import RequestError

if TYPE_CHECKING:
    from gristmill.formats import Model


@dataclass(frozen=True)
class Candidate:
    """A token that could come next. `token` is its text; bytes that are no UTF-8 alone show as U+FFFD."""

    id: int
    token: str
    probability: float


@dataclass(frozen=True)
class Read:
    """A token of the text. The first one has no probability where the tokenizer has no token to begin with.

    surprisal: -log2(probability), in bits. rank: 1 when no token was likelier.
    """

    id: int
    token: str
    probability: float | None
    surprisal: float | None
    rank: int | None


@dataclass(frozen=True)
class Inspection:
    """loss is in nats a token, perplexity = exp(loss), bits_per_byte of UTF-8; all over the tokens that have a
    probability, None where there is none. `rest` is the probability of all tokens that `next` leaves out."""

    tokens: tuple[Read, ...]
    next: tuple[Candidate, ...]
    rest: float
    loss: float | None
    perplexity: float | None
    bits_per_byte: float | None


@torch.inference_mode()
def inspect(model: Model, text: str, top: int = 10) -> Inspection:
    """Read `text`, after what the tokenizer puts before a prompt, and look at what follows.

    Raises RequestError when nothing is left to read or the text is longer than the context.
    """
    if top < 1:
        raise RequestError(f"top must be at least 1, not {top}")
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text)
    begin = tokenizer.before
    if not begin and not ids:
        raise RequestError("the text is empty, and the tokenizer has no token to begin with")
    every = torch.tensor([begin + ids])
    log_probs = model(every)[0].double().log_softmax(dim=-1)

    first = 1 - len(begin)  # index in `ids` of the first token that has a probability
    read = [Read(id, _text(model, id), None, None, None) for id in ids[:first]]
    bits, size = 0.0, 0
    for at, id in enumerate(ids[first:]):
        log_prob = float(log_probs[at, id])
        rank = 1 + int((log_probs[at] > log_probs[at, id]).sum())
        surprisal = -log_prob / math.log(2)
        read.append(Read(id, _text(model, id), math.exp(log_prob), surprisal, rank))
        bits += surprisal
        size += len(tokenizer.token_bytes(id))
    count = len(ids) - first
    loss = bits * math.log(2) / count if count > 0 else None

    probabilities, order = log_probs[-1].exp().topk(min(top, log_probs.shape[-1]))
    following = tuple(
        Candidate(id, _text(model, id), p)
        for p, id in zip(probabilities.tolist(), order.tolist(), strict=True)
    )
    return Inspection(
        tokens=tuple(read),
        next=following,
        rest=max(0.0, 1.0 - float(probabilities.sum())),
        loss=loss,
        perplexity=None if loss is None else math.exp(min(loss, 700.0)),
        bits_per_byte=bits / size if size else None,
    )


def _text(model: Model, id: int) -> str:
    return model.tokenizer.token_bytes(id).decode("utf-8", errors="replace")
