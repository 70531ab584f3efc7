"""From a text to the training documents that hold parts of it verbatim.

As OLMoTrace (arXiv 2504.07096) does: of all spans that stand verbatim in training data and in no longer such span,
the rarest are shown, those whose tokens have the smallest product of unigram probabilities; long spans of rare words
before short ones of common words. Each comes with how often it occurs, and with documents that hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np

from gristmill.data.schema import TEXT_COLUMNS, Document, arrow, documents_dir
from gristmill.data.trace.index import Index
from gristmill.data.trace.search import Match, find, longest_matches, maximal
from gristmill.errors import RequestError
from gristmill.tokenizer import Tokenizer

LEAST_TOKENS = 5
_LEAST_SPANS, _SPANS_A_TOKEN = 5, 0.05  # OLMoTrace's share; short texts have few tokens to share in
_PLACES = 512  # of a span, that are looked at for documents: evenly over all
_CONTEXT = 24  # tokens shown before and after a span in a document


@dataclass(frozen=True)
class Place:
    """Where a document holds a span. at: tokens from the document's beginning. before, after: what stands around."""

    document: str
    group: str
    at: int
    before: str
    after: str


@dataclass(frozen=True)
class Span:
    """A run of the text, text[begin:end] in characters, that stands verbatim in training data.

    bits: its surprisal were every token drawn by itself: -log2 of the product of unigram probabilities.
    occurrences: how often it stands there, in all documents. places: some of them, one a document.
    """

    begin: int
    end: int
    text: str
    tokens: int
    bits: float
    occurrences: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Passage:
    """Spans that overlap or touch, as one to show. spans: their numbers, from 1, in Traced.spans."""

    begin: int
    end: int
    spans: tuple[int, ...]


@dataclass(frozen=True)
class Traced:
    """What training data says of a text.

    verbatim: share of the text's tokens that stand in any verbatim span long enough, shown or not.
    spans: the rarest, in the order of the text. found: how many there are in all.
    documents: those that `spans` name, as far as their rows were at hand; `text` is left empty.
    """

    text: str
    tokens: int
    verbatim: float
    found: int
    spans: tuple[Span, ...]
    passages: tuple[Passage, ...]
    documents: dict[str, Document]


def trace(
    text: str,
    index: Index,
    tokenizer: Tokenizer,
    documents: Path | None = None,
    *,
    spans: int | Literal["auto"] = "auto",
    least_tokens: int = LEAST_TOKENS,
    per_span: int = 5,
) -> Traced:
    """The rarest verbatim spans of `text` in the shards of `index`, and documents that hold them.

    tokenizer: the one that made the shards. documents: the directory they were made from, for source, licence and
    story of each. spans: the most to give; "auto" is one for 20 tokens, 5 at least. per_span: documents for each.
    Spans begin and end with tokens. Raises RequestError for a text of more than 16,384 tokens.
    """
    tokenizer.encode(text)  # for its complaints
    encoding = tokenizer.plain.encode(text, add_special_tokens=False)
    ids, at = np.array(encoding.ids, np.int64), encoding.offsets
    lengths = longest_matches(index, ids)
    starts = maximal(lengths, least_tokens)
    covered = np.zeros(len(ids), bool)
    for start in starts:
        covered[start : start + lengths[start]] = True
    most = max(_LEAST_SPANS, ceil(_SPANS_A_TOKEN * len(ids))) if spans == "auto" else spans
    bits = _bits(index, ids, starts, lengths)
    rarest = np.sort(starts[np.lexsort((starts, -bits))[:most]])
    surprisal = dict(zip(starts.tolist(), bits.tolist(), strict=True))
    matches = find(index, ids, rarest, lengths[rarest])
    chosen = _documents(index, matches, [surprisal[match.begin] for match in matches], per_span)
    shown = tuple(
        Span(
            begin=(begin := at[match.begin][0]),
            end=(end := at[match.end - 1][1]),
            text=text[begin:end],
            tokens=match.end - match.begin,
            bits=round(surprisal[match.begin], 3),
            occurrences=match.places,
            places=tuple(_place(index, tokenizer, match, *where) for where in places),
        )
        for match, places in zip(matches, chosen, strict=True)
    )
    named = {place.document for span in shown for place in span.places}
    return Traced(
        text=text,
        tokens=len(ids),
        verbatim=float(covered.mean()) if len(ids) else 0.0,
        found=len(starts),
        spans=shown,
        passages=merged(shown),
        documents=stories(documents, named) if documents is not None else {},
    )


def merged(spans: Sequence[Span]) -> tuple[Passage, ...]:
    """Spans in the order of the text, those that overlap or touch as one."""
    passages: list[Passage] = []
    for number, span in enumerate(spans, 1):
        if passages and span.begin <= passages[-1].end:
            last = passages.pop()
            passages.append(Passage(last.begin, max(last.end, span.end), (*last.spans, number)))
        else:
            passages.append(Passage(span.begin, span.end, (number,)))
    return tuple(passages)


def stories(directory: Path, ids: Iterable[str]) -> dict[str, Document]:
    """id -> the row of each training document of these ids that is there, its text left out.

    Reads the column of ids, and of other columns the row groups that hold one.
    """
    wanted = set(ids)
    pyarrow = arrow()
    columns = [name for name in TEXT_COLUMNS if name != "text"]
    found: dict[str, Document] = {}
    try:
        with pyarrow.parquet.ParquetFile(documents_dir(directory) / "train.parquet") as file:
            for group in range(file.num_row_groups if wanted else 0):
                here = file.read_row_group(group, columns=["id"]).column("id").to_pylist()
                if numbers := [number for number, id in enumerate(here) if id in wanted]:
                    rows = file.read_row_group(group, columns=columns).take(numbers).to_pylist()
                    found |= {row["id"]: Document(**row, text="") for row in rows}
    except pyarrow.ArrowInvalid as error:
        raise RequestError(
            f"{documents_dir(directory)}/train.parquet is damaged: {error}"
        ) from None
    return {name: found[name] for name in sorted(found)}


def _bits(index: Index, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Of each span -log2 of the product of its tokens' unigram probabilities."""
    total = max(1, int(index.counts.sum()))
    known = (ids >= 0) & (ids < index.vocab_size)
    counts = np.where(known, index.counts[np.where(known, ids, 0)], 0)
    each = np.log2(total / np.maximum(counts, 1))
    summed = np.concatenate([[0.0], np.cumsum(each)])
    return summed[starts + lengths[starts]] - summed[starts]


_Where = tuple[str, int, int]  # group, number of the document in it, position in the group's tokens


def _documents(
    index: Index, matches: Sequence[Match], bits: Sequence[float], per_span: int
) -> list[list[_Where]]:
    """For each match the documents to show: first those that hold most of the text, in bits over all matches."""
    every = [_places(index, match) for match in matches]
    weight: dict[tuple[str, int], float] = {}
    for places, bits_of_one in zip(every, bits, strict=True):
        for key in places:
            weight[key] = weight.get(key, 0.0) + bits_of_one
    return [
        [
            (*key, places[key])
            for key in sorted(places, key=lambda key: (-weight[key], key))[:per_span]
        ]
        for places in every
    ]


def _places(index: Index, match: Match) -> dict[tuple[str, int], int]:
    """(group, document) -> the first position there, for at most _PLACES places evenly over all."""
    found: dict[tuple[str, int], int] = {}
    step, seen = max(1, ceil(match.places / _PLACES)), 0
    for part, (low, high) in zip(index.parts, match.ranges, strict=True):
        picked = np.arange(low + -seen % step, high, step)
        seen += high - low
        positions = part.start + part.suffixes[picked].astype(np.int64)
        numbers = np.searchsorted(index.offsets[part.group], positions, "right") - 1
        for number, position in zip(numbers.tolist(), positions.tolist(), strict=True):
            key = (part.group, number)
            found[key] = min(position, found.get(key, position))
    return found


def _place(
    index: Index, tokenizer: Tokenizer, match: Match, group: str, number: int, position: int
) -> Place:
    offsets = index.offsets[group]
    begin, end = int(offsets[number]), int(offsets[number + 1])
    tokens = next(part.tokens for part in index.parts if part.group == group)  # the whole shard
    after = position + match.end - match.begin
    return Place(
        document=index.ids[group][number],
        group=group,
        at=position - begin,
        before=tokenizer.decode(tokens[max(begin, position - _CONTEXT) : position].tolist()),
        after=tokenizer.decode(tokens[after : min(end, after + _CONTEXT)].tolist()),
    )
