"""Which rows of a batch are to blame, and what is odd about their tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from torch import Tensor

from gristmill.tokenizer import Tokenizer
from gristmill.train.examine import Examined
from gristmill.train.origin import Origin, origins
from gristmill.train.windows import Windows

_SHOWN = 80  # characters


@dataclass(frozen=True)
class Suspect:
    """A row of the batch. document: the one in it that costs the most, "" where shards do not name them; documents:
    all that have a part in it. why, where: for a sentence. text: how the document, or the row, begins."""

    row: int
    group: str
    start: int  # in the group's shard, tokens
    document: str
    documents: tuple[str, ...]
    highest: int  # id
    clues: tuple[str, ...]
    why: str
    where: str
    text: str


def accuse(
    windows: Windows,
    tokens_dir: Path,
    tokenizer: Tokenizer,
    first: int,
    count: int,
    found: Examined | None,
    losses_of: Callable[[int], Tensor],
) -> tuple[Suspect, ...]:
    """Of the rows `first .. first+count-1` of the stream those that stand out among the others, the worst first.
    Without what an examination found, all of them, and what their tokens tell.

    losses_of: row -> nats of each of its tokens; asked only where there was an examination.
    """
    rows = windows.rows(first, count)[:, :-1]
    places = origins(windows, tokens_dir, first, count)
    outliers = [(number, "") for number in range(count)] if found is None else outstanding(found)
    start = next(iter(tokenizer.document_start), None)
    accused = []
    for number, why in outliers:
        ids, place = rows[number], places[number]
        begin, end, document = 0, len(ids), place.spans[0].document if place.spans else ""
        if found is not None and len(place.spans) > 1 and np.isfinite(found.rows[number].loss):
            losses = losses_of(number)
            worst = max(place.spans, key=lambda span: float(losses[span.begin : span.end].mean()))
            begin, end, document = worst.begin, worst.end, worst.document
        clues = odd(ids[begin:end], start, tokenizer)
        accused.append(
            Suspect(
                number,
                place.group,
                place.start,
                document,
                tuple(span.document for span in place.spans),
                int(ids.max()),
                clues,
                "; ".join([*([why] if why else []), *clues]) or "is like the others",
                _where(number, place, document),
                _text(tokenizer, ids[begin:end]),
            )
        )
    return tuple(accused)


def outstanding(found: Examined) -> list[tuple[int, str]]:
    """(row, in what it stands out), the worst first; [] where all are bad or none is."""
    rows = found.rows
    broken = [n for n, row in enumerate(rows) if not row.sound]
    if broken:
        said = "is not finite where the others are"
        return [] if len(broken) == len(rows) > 1 else [(n, said) for n in broken]
    loss, norm = median(row.loss for row in rows), median(row.norm for row in rows)
    by_loss = [n for n, row in enumerate(rows) if row.loss > max(1.5 * loss, loss + 1.0)]
    by_norm = [n for n, row in enumerate(rows) if row.norm > 4 * norm]
    chosen = by_loss or by_norm
    if len(chosen) > len(rows) / 2:
        return []
    said = [
        (n, f"has a loss of {rows[n].loss:.2f} where the median row has {loss:.2f}")
        if by_loss
        else (n, f"has a gradient of norm {rows[n].norm:.3g} where the median row has {norm:.3g}")
        for n in chosen
    ]
    return sorted(said, key=lambda item: -(rows[item[0]].loss if by_loss else rows[item[0]].norm))


def odd(ids: np.ndarray, document_start: int | None, tokenizer: Tokenizer) -> tuple[str, ...]:
    """What is unlike text in a run of tokens, in words."""
    found = []
    counts = np.unique(ids, return_counts=True)[1]
    if len(ids) >= 16 and counts.max() > 0.5 * len(ids):
        found.append(f"one token makes up {counts.max() / len(ids):.0%} of it")
    if len(ids) >= 32 and len(counts) > 0.9 * len(ids):
        found.append("hardly a token comes twice, as in noise or binary data")
    if document_start is not None:
        starts = ids == document_start
        doubled = int((starts[1:] & starts[:-1]).sum())
        if doubled:
            found.append(f"{doubled} times a document starts right where another does")
    known = ids[ids < tokenizer.vocab_size].tolist()
    text = tokenizer.decode(known)
    strange = sum(c == "\ufffd" or (ord(c) < 32 and c not in "\t\n\r\f") for c in text)
    if text and strange > 0.1 * len(text):
        found.append(f"{strange / len(text):.0%} of its characters are not text (binary?)")
    return tuple(found)


def _where(number: int, place: Origin, document: str) -> str:
    named = f'document "{document}" in ' if document else ""
    return f'{named}row {number} (group "{place.group}", token {place.start:,})'


def _text(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    text = " ".join(tokenizer.decode(ids[ids < tokenizer.vocab_size][:_SHOWN].tolist()).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
