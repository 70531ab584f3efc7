"""Whether every way to run a model says the same: the log-probability of given tokens, path by path.

One set of probes, texts and a chat, goes through the network as the trainer runs it, through the engine in each of
its states (a whole prompt, token by token, in chunks, among others, after a cached beginning, with drafts), and
through copies in other formats. Each path reports what it makes of tokens; the trainer's forward pass over the same
tokens is the reference. The HTTP server is a path that the caller brings (`Reader`): servers stand above this room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from gristmill.errors import GristmillError, WorkError
from gristmill.evaluate.parity_paths import (
    ENGINE_PATHS,
    NO_TEMPLATE,
    TEXTS,
    Probes,
    Reading,
    chat_ids,
    make_probes,
)
from gristmill.formats import Model, describe
from gristmill.formats.parity import KNOWN_ERROR, Sample, compare, sample
from gristmill.kernels import CodedMatrix

# What rounding to a tensor's type may cost (mean KL): types by the names of GGUF and of torch.
_COSTS = KNOWN_ERROR | {
    "float32": KNOWN_ERROR["F32"],
    "float16": KNOWN_ERROR["F16"],
    "bfloat16": KNOWN_ERROR["BF16"],
    "int8": KNOWN_ERROR["Q8_0"],
    "int4": 0.5,  # up to 0.26 was measured: GPTQ, little calibration text, 4M parameters
    "Q5_K": KNOWN_ERROR["Q5_K_M"],
    "Q4_K": KNOWN_ERROR["Q4_K_M"],
}
TOLERANCE = 1e-4  # of a log-probability, between the engine and the trainer (nats)
_BOUND = f"≤ {TOLERANCE:.0e}"
Status = Literal["same", "broken", "not run"]


@dataclass(frozen=True)
class PathResult:
    """max_difference, mean_difference: of log-probabilities of given tokens from the reference's, in nats.
    same_top: share of places with the same likeliest token. identical: whether every log-probability has the bits
    that the engine's first path gave. kl: mean KL divergence, of copies alone. same_texts, same_chat: whether the
    texts and the rendered chat became the same ids, None where they were not compared. bound: what was asked of
    it, in words. why: for what it is not run or broken, where numbers do not tell, or what was not compared."""

    path: str
    bound: str
    status: Status
    why: str = ""
    tokens: int = 0
    max_difference: float | None = None
    mean_difference: float | None = None
    same_top: float | None = None
    identical: bool | None = None
    kl: float | None = None
    same_texts: bool | None = None
    same_chat: bool | None = None


# A path that the caller brings: its name, and what it makes of the probes: readings, and the ids of the chat.
Reader = tuple[str, Callable[[Model, Probes], tuple[list[Reading], list[int] | None]]]


def parity(
    model: Model, against: Sequence[str | Path] = (), others: Sequence[Reader] = ()
) -> Iterator[PathResult]:
    """One result after the other: the engine's paths, what `others` read, each copy in `against`."""
    probes = make_probes(model)
    reference = _Reference(model)
    exact = False
    first: dict[tuple[int, ...], float] = {}
    for name, read in ENGINE_PATHS:
        engine, readings, why = read(model, probes)
        exact = engine.runner.exact
        bound = _BOUND + (", same bits" if exact else "")
        yield _judged(name, bound, readings, reference, first, exact, why)
    for name, read_other in others:
        bound = _BOUND + (", same bits" if exact else "")
        if probes.chat is None:
            yield PathResult(name, bound, "not run", f"the model {probes.no_chat}")
            continue
        try:
            readings, chat = read_other(model, probes)
        except WorkError as error:
            yield PathResult(name, bound, "broken", str(error))
            continue
        same = None if chat is None else chat == probes.chat
        yield _judged(name, bound, readings, reference, first, exact, "", same)
    for path in against:
        yield compared(model, probes, path)


class _Reference:
    """The trainer's forward pass: network(tokens), as the loss is computed from it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, reading: Reading) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the tokens that `reading` reports, and the likeliest tokens there."""
        if reading.ids not in self._known:
            with torch.inference_mode():
                tokens = torch.tensor([reading.ids], device=self._model.device)
                log_probs = self._model.network(tokens)[0].log_softmax(-1).cpu()
            chosen = log_probs[:-1].gather(1, tokens[0, 1:, None].cpu())[:, 0]
            self._known[reading.ids] = chosen, log_probs[:-1].argmax(-1)
        chosen, top = self._known[reading.ids]
        places = slice(reading.first - 1, reading.first - 1 + len(reading.logprobs))
        return chosen[places], top[places]


def _judged(
    name: str,
    bound: str,
    readings: Iterable[Reading],
    reference: _Reference,
    first: dict[tuple[int, ...], float],
    exact: bool,
    why: str,
    same_chat: bool | None = None,
) -> PathResult:
    """Measure a path. `first` holds what an earlier path gave for a token after the same ones, and is added to."""
    differences: list[torch.Tensor] = []
    agreed: list[torch.Tensor] = []
    identical = True
    for reading in readings:
        chosen, top = reference(reading)
        differences.append((torch.tensor(reading.logprobs) - chosen).abs())
        agreed.append(torch.tensor(reading.likeliest) == top)
        for at, value in enumerate(reading.logprobs, reading.first):
            identical &= first.setdefault(reading.ids[: at + 1], value) == value
    if why or not differences:
        return PathResult(name, bound, "not run", why or "no probe is long enough")
    every = torch.cat(differences)
    most = float(every.max())
    fine = most <= TOLERANCE and (identical or not exact) and same_chat is not False
    return PathResult(
        name,
        bound,
        "same" if fine else "broken",
        "it made other ids of the chat" if same_chat is False else "",
        tokens=len(every),
        max_difference=most,
        mean_difference=float(every.mean()),
        same_top=float(torch.cat(agreed).float().mean()),
        identical=identical,
        same_chat=same_chat,
    )


def compared(model: Model, probes: Probes, path: str | Path) -> PathResult:
    """A copy of the model on disk, read as the trainer would read it."""
    try:
        copy = Model.load(path, dtype="auto", activations="float")
    except GristmillError as error:
        return PathResult(str(path), "loads", "broken", str(error))
    kind, cost = max((_kind(one) for one in (model, copy)), key=lambda found: found[1])
    f32 = kind in ("F32", "float32")
    bound = _BOUND if f32 else f"KL ≤ {cost:g}"
    if copy.config.vocab_size != model.config.vocab_size:
        sizes = f"{copy.config.vocab_size} tokens and the model {model.config.vocab_size}"
        return PathResult(str(path), bound, "broken", f"its vocabulary has {sizes}")
    same_texts = all(
        copy.tokenizer.prompt_ids(text) == model.tokenizer.prompt_ids(text) for text in TEXTS
    )
    same_chat, why = _chats(model, copy)
    if not same_texts:
        why = "the texts become other ids: the tokenizers differ"
    differences, agreed, kl, count = [], [], 0.0, 0
    for ids in (ids for ids in probes.whole if len(ids) > 1):
        before, after = sample(model, ids), sample(copy, ids)
        found = compare(before, after)
        kl, count = kl + found.kl * found.tokens, count + found.tokens
        p, q = (_of_given(ids, one)[: found.tokens] for one in (before, after))
        differences.append((p - q).abs()[: min(len(p), len(q))])
        agreed.append(found.same_top * found.tokens)
    every = torch.cat(differences)
    most, kl = float(every.max()), kl / count
    fine = same_texts and same_chat is not False and (most <= TOLERANCE if f32 else kl <= cost)
    return PathResult(
        str(path),
        bound,
        "same" if fine else "broken",
        why,
        tokens=len(every),
        max_difference=most,
        mean_difference=float(every.mean()),
        same_top=sum(agreed) / count,
        kl=kl,
        same_texts=same_texts,
        same_chat=same_chat,
    )


def _chats(model: Model, copy: Model) -> tuple[bool | None, str]:
    """Whether the chat became the same ids, None where it was not compared; and what there is to say of it."""
    (ours, model_lacks), (theirs, copy_lacks) = chat_ids(model), chat_ids(copy)
    if ours is not None and theirs is not None:
        return ours == theirs, "" if ours == theirs else _other_chat(model, copy)
    if model_lacks == copy_lacks == NO_TEMPLATE:
        lacking = "no chat template on either side"
    else:
        sides = (("the model", model_lacks), ("the copy", copy_lacks))
        lacking = " and ".join(f"{side} {lacks}" for side, lacks in sides if lacks)
    return None, f"{lacking}, so no chat was compared"


def _other_chat(model: Model, copy: Model) -> str:
    if model.tokenizer.chat_template == copy.tokenizer.chat_template:
        return "the chat becomes other ids: the templates are the same, the tokenizers differ"
    return "the chat becomes other ids: the chat templates differ"


def _kind(model: Model) -> tuple[str, float]:
    """The coarsest type among the model's tensors on disk, and what it may cost; F32 for one made in memory.

    A type without a measured bound has the largest there is.
    """
    if model.path is None:
        return "F32", KNOWN_ERROR["F32"]
    coded = {m.coding for m in model.network.modules() if isinstance(m, CodedMatrix)}
    # A directory's codes are packed into integers that say nothing.
    stored = {tensor.type for tensor in describe(model.path).tensors} - {"int32", "int64", "uint8"}
    kinds = stored | coded
    worst = max(_COSTS.values())
    return max(((kind, _COSTS.get(kind, worst)) for kind in kinds), key=lambda found: found[1])


def _of_given(ids: Sequence[int], found: Sample) -> torch.Tensor:
    """Log-probabilities of the second to the last of the ids."""
    count = min(len(ids), len(found.logprobs)) - 1
    targets = torch.tensor(ids[1 : count + 1])[:, None]
    return found.logprobs[:count].gather(1, targets)[:, 0]
