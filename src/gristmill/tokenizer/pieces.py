"""A SentencePiece vocabulary as a `tokenizers` backend with equal ids, wherever its pieces were stored.

SentencePiece BPE (sentencepiece/src/bpe_model.cc) merges the neighbours whose concatenation has the best score;
`tokenizers` merges listed pairs in the list's order. Listing every way to cut every piece in two, best score
first, makes the two agree as long as every character of a piece is a piece too, and no two pieces share a score
(or only runs of one character do: Llama 2's "▁▁" to sixteen "▁"); all that is checked here. Unigram
(unigram_model.cc) finds the likeliest cut; `tokenizers` does the same in float64 where SentencePiece uses
float32, so of two cuts that are *equally* likely (a run like "======") either may win.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from gristmill.errors import RequestError

SPACE = "▁"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_UNKNOWN_PENALTY = 10.0  # kUnkPenalty of unigram_model.cc and of tokenizers
_USER_DEFINED_SCORE = -0.1  # unigram_model.cc: length * max_score - 0.1, where max_score is FLT_MIN


class Kind(IntEnum):
    """What a piece is, by the numbers that both sentencepiece_model.proto and GGUF use."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece; its place in the list is its id."""

    text: str
    score: float
    kind: Kind


def backend_of(
    entries: Sequence[Entry],
    where: str,
    unigram: bool = False,
    dummy_prefix: bool = True,
    collapse_spaces: bool = False,
) -> tokenizers.Tokenizer:
    """The backend; control and unknown pieces are its special tokens. `where` begins the errors.

    dummy_prefix: "▁" goes before every text. collapse_spaces: runs of spaces count as one, and those around the
    text are dropped (SentencePiece's remove_extra_whitespaces). Raises RequestError for pieces that contradict
    each other and for what `tokenizers` cannot do exactly.
    """
    unknown, byte_fallback = _check(entries, where)
    if unigram:
        backend = tokenizers.Tokenizer(_unigram(entries, unknown, byte_fallback))
    else:
        backend = _bpe(entries, where, unknown, byte_fallback)
    backend.normalizer = normalizers.Sequence(_normalization(dummy_prefix, collapse_spaces))
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy_prefix or collapse_spaces:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(
        [
            AddedToken(entry.text, special=True, normalized=False)
            for entry in entries
            if entry.kind in (Kind.CONTROL, Kind.UNKNOWN)
        ]
    )
    return backend


def merges_of(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """The pairs of normal pieces that make a normal piece, best score first, then lowest id."""
    ids = {entry.text: id for id, entry in enumerate(entries) if entry.kind == Kind.NORMAL}
    merges: list[tuple[str, str]] = []
    for text in sorted(ids, key=lambda text: (-entries[ids[text]].score, ids[text])):
        cuts = [
            (left, right)
            for at in range(1, len(text))
            if (left := text[:at]) in ids and (right := text[at:]) in ids
        ]
        # The order transformers' converter gives the cuts of one piece.
        merges += sorted(cuts, key=lambda cut: (ids[cut[0]], ids[cut[1]]))
    return merges


def _check(entries: Sequence[Entry], where: str) -> tuple[int, bool]:
    """The unknown piece's id, and whether there are byte pieces."""
    seen: dict[str, int] = {}
    for id, entry in enumerate(entries):
        if not entry.text:
            raise RequestError(f"{where}: piece {id} is empty")
        if entry.text in seen:
            raise RequestError(
                f"{where}: pieces {seen[entry.text]} and {id} are both {entry.text!r}"
            )
        if not math.isfinite(entry.score):
            raise RequestError(f"{where}: piece {id}, {entry.text!r}, has the score {entry.score}")
        seen[entry.text] = id
    unknown = [id for id, entry in enumerate(entries) if entry.kind == Kind.UNKNOWN]
    if not unknown:
        raise RequestError(f"{where}: no piece stands for unknown text")
    found = sum(entry.kind == Kind.BYTE for entry in entries)
    missing = [name for name in _BYTES if name not in seen or entries[seen[name]].kind != Kind.BYTE]
    if found and (missing or found != len(_BYTES)):
        raise RequestError(
            f"{where}: {found} byte pieces where there must be 256, {_BYTES[0]} to {_BYTES[-1]}"
        )
    normal = {entry.text for entry in entries if entry.kind == Kind.NORMAL}
    for entry in entries:
        alone = set(entry.text) - normal if entry.kind == Kind.NORMAL else ()
        if alone and len(entry.text) > 1:
            raise RequestError(
                f"{where}: {min(alone)!r}, a character of the piece {entry.text!r}, is no piece itself; "
                "tokenizers cannot merge it"
            )
        if entry.kind == Kind.USER_DEFINED and " " in entry.text:
            raise RequestError(f"{where}: the user-defined piece {entry.text!r} holds a space")
    return unknown[0], bool(found)


def _normalization(dummy_prefix: bool, collapse_spaces: bool) -> list[normalizers.Normalizer]:
    """sentencepiece/src/normalizer.cc in its order; \\A and \\z, since ^ and $ are about lines here."""
    steps: list[normalizers.Normalizer] = []
    if collapse_spaces:
        steps += [
            normalizers.Replace(Regex(r"\A +"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if collapse_spaces:
        steps.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))
    return steps


def _unigram(entries: Sequence[Entry], unknown: int, byte_fallback: bool) -> models.Unigram:
    """Pieces that no text may become cost more than their characters as unknown ones."""
    scores = [entry.score for entry in entries if entry.kind == Kind.NORMAL]
    worst = min(scores, default=0.0) - _UNKNOWN_PENALTY

    def score(entry: Entry) -> float:
        if entry.kind == Kind.NORMAL:
            return entry.score
        if entry.kind == Kind.USER_DEFINED:
            return _USER_DEFINED_SCORE
        return worst * (len(entry.text) + 1)

    return models.Unigram([(entry.text, score(entry)) for entry in entries], unknown, byte_fallback)


def _bpe(
    entries: Sequence[Entry], where: str, unknown: int, byte_fallback: bool
) -> tokenizers.Tokenizer:
    vocab = {entry.text: id for id, entry in enumerate(entries)}
    merges = merges_of(entries)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=entries[unknown].text,
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    )
    _check_ties(backend, entries, merges, where)
    whole = [entry.text for entry in entries if entry.kind == Kind.USER_DEFINED]
    if whole:
        backend.pre_tokenizer = _isolate(backend, entries, whole, where)
        backend.model.ignore_merges = True  # type: ignore[attr-defined]
    return backend


def _check_ties(
    backend: tokenizers.Tokenizer,
    entries: Sequence[Entry],
    merges: list[tuple[str, str]],
    where: str,
) -> None:
    """Of pieces with one score, SentencePiece makes the leftmost first, and `tokenizers` the one listed first.

    Harmless where both give the same: tried for runs of one character that merge before or after all others, so
    that nothing else comes between. Raises RequestError for other ties.
    """
    scores = {entry.text: entry.score for entry in entries if entry.kind == Kind.NORMAL}
    made = list(dict.fromkeys("".join(pair) for pair in merges))
    tied = {text for pair in pairwise(made) if scores[pair[0]] == scores[pair[1]] for text in pair}
    ends = {scores[made[0]], scores[made[-1]]} if made else set()
    for text in tied:
        if len(set(text)) > 1 or scores[text] not in ends:
            twin = next(other for other in tied if other != text and scores[other] == scores[text])
            raise RequestError(
                f"{where}: the pieces {text!r} and {twin!r} have the same score, an order of merging that "
                "tokenizers cannot follow; use the model's tokenizer.json"
            )
    for character in sorted({text[0] for text in tied}):
        longest = max(len(text) for text in tied if text[0] == character)
        for length in range(2, 4 * longest + 1):
            run = character * length
            found = backend.encode(run, add_special_tokens=False).tokens
            if found != _merged(run, scores):
                raise RequestError(
                    f"{where}: {length} times {character!r} are merged in an order that tokenizers cannot "
                    "follow; use the model's tokenizer.json"
                )


def _merged(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece BPE itself, slowly: the best neighbours merge, of equals the leftmost."""
    parts = list(text)
    while True:
        pairs = [left + right for left, right in pairwise(parts)]
        best = max((scores.get(pair, -math.inf) for pair in pairs), default=-math.inf)
        if best == -math.inf:
            return parts
        at = next(at for at, pair in enumerate(pairs) if scores.get(pair) == best)
        parts[at : at + 2] = [pairs[at]]


def _isolate(
    backend: tokenizers.Tokenizer, entries: Sequence[Entry], whole: list[str], where: str
) -> pre_tokenizers.PreTokenizer:
    """User-defined pieces are cut out of the text first and, being whole words, taken as they are.

    `ignore_merges` takes every word that is in the vocabulary: right for normal pieces, which merging makes
    anyway (checked here), wrong for a word that reads "<s>" or "<0x0A>". Such a word is cut where merging
    leaves a boundary in it.
    """
    cuts: list[str] = []
    for entry in entries:
        if entry.kind == Kind.USER_DEFINED:
            continue
        encoding = backend.encode(entry.text, add_special_tokens=False)
        if entry.kind == Kind.NORMAL and len(encoding.ids) != 1:
            raise RequestError(
                f"{where}: merging never makes the piece {entry.text!r}; beside user-defined pieces "
                "tokenizers cannot leave it out"
            )
        if entry.kind != Kind.NORMAL:
            ends = [end for (_, end), (start, _) in pairwise(encoding.offsets) if end <= start]
            if not ends:
                raise RequestError(
                    f"{where}: text that reads {entry.text!r} would become that piece"
                )
            head, tail = entry.text[: ends[0]], entry.text[ends[0] :]
            cuts.append(rf"\A{re.escape(head)}(?={re.escape(tail)}\z)")
    longest_first = sorted(whole, key=lambda text: (-len(text), text))
    found = "|".join(map(re.escape, longest_first))
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(found), behavior="isolated"),
            pre_tokenizers.Split(Regex("|".join(cuts)), behavior="isolated"),
        ]
    )
