"""A tokenizer from GGUF metadata (`tokenizer.ggml.*`, `tokenizer.chat_template`); gguf_write.py is the way back.

GGUF has the vocabulary, but of the rules only names: how text is split is `tokenizer.ggml.pre`, and what
SentencePiece does around it is implied. So what is read is exactly what the name means, and what is written must be
what some name means; everything else is refused, since llama.cpp would read other ids without an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, normalizers

from gristmill.errors import RequestError, nearest
from gristmill.tokenizer.patterns import PRE
from gristmill.tokenizer.pieces import Entry, Kind, backend_of
from gristmill.tokenizer.ranks import byte_level
from gristmill.tokenizer.tokenizer import Tokenizer

_GGML = "tokenizer.ggml."
_NAMED = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
_STOPS = ("eot_token_id", "eom_token_id")  # besides EOS


def from_gguf_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file: `tokenizer.ggml.model` "gpt2" (byte-level BPE) or "llama" (SentencePiece).

    Unused tokens at the end, which pad the vocabulary to the model's size, are left out. Raises RequestError,
    naming key and token, for what is missing, contradictory or not known.
    """
    model = _get(metadata, "model", str)
    if model not in ("gpt2", "llama"):
        raise RequestError(
            f"{_GGML}model {model!r} is not supported: gpt2 (byte-level BPE) and llama (SentencePiece) are"
        )
    entries = _entries(metadata, scored=model == "llama")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for key, name in _NAMED.items():
        id = _id(metadata, f"{name}_token_id", len(entries))
        if id is not None:
            config[key] = entries[id].text
    if model == "gpt2":
        backend, adds_bos = _byte_level(metadata, entries)
    else:
        adds_bos = True
        backend = _sentencepiece(metadata, entries, config)
    adds_bos = _flag(metadata, "add_bos_token", adds_bos)
    config["add_bos_token"] = adds_bos and "bos_token" in config
    config["add_eos_token"] = _flag(metadata, "add_eos_token", False) and "eos_token" in config
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise RequestError("tokenizer.chat_template must be a string")
        config["chat_template"] = template
    stops = [_id(metadata, key, len(entries)) for key in _STOPS]
    return Tokenizer(backend, config, [id for id in stops if id is not None])


def _entries(metadata: Mapping[str, Any], scored: bool) -> list[Entry]:
    """Tokens with their types and scores; those that pad the end left out."""
    tokens = _strings(metadata, "tokens")
    kinds = _numbers(metadata, "token_type", len(tokens)) if _has(metadata, "token_type") else None
    if kinds is None:
        if scored:
            raise RequestError(f"{_GGML}token_type is missing")
        kinds = np.full(len(tokens), Kind.NORMAL)
    scores = _numbers(metadata, "scores", len(tokens)) if scored else np.zeros(len(tokens))
    wrong = np.flatnonzero(~np.isin(kinds, [int(kind) for kind in Kind]))
    if len(wrong):
        raise RequestError(f"{_GGML}token_type: token {wrong[0]} has the type {kinds[wrong[0]]}")
    seen: dict[str, int] = {}
    for id, text in enumerate(tokens):
        if not text or text in seen:
            what = (
                f"tokens {seen[text]} and {id} are both {text!r}"
                if text
                else f"token {id} is empty"
            )
            raise RequestError(f"{_GGML}tokens: {what}")
        seen[text] = id
    used = np.flatnonzero(kinds != Kind.UNUSED)
    if not len(used):
        raise RequestError(f"{_GGML}tokens holds no token that is used")
    rows = zip(tokens, scores.tolist(), kinds.tolist(), strict=True)
    entries = [Entry(text, score, Kind(kind)) for text, score, kind in rows]
    return entries[: int(used[-1]) + 1]


def _byte_level(
    metadata: Mapping[str, Any], entries: list[Entry]
) -> tuple[tokenizers.Tokenizer, bool]:
    """The backend, and whether its family puts BOS before a prompt."""
    pre = _get(metadata, "pre", str) if _has(metadata, "pre") else "default"
    split = PRE.get(pre)
    if split is None:
        raise RequestError(
            f"{_GGML}pre {pre!r} is not a known way to split text.{nearest(pre, PRE)} Known are "
            + ", ".join(PRE)
        )
    vocab = {entry.text: id for id, entry in enumerate(entries)}
    merges = []
    for number, merge in enumerate(_strings(metadata, "merges")):
        at = merge.find(" ", 1)
        pair = (merge[:at], merge[at + 1 :])
        if at < 0 or not pair[1]:
            raise RequestError(f"{_GGML}merges: entry {number}, {merge!r}, is no pair of tokens")
        for token in (*pair, "".join(pair)):
            if token not in vocab:
                raise RequestError(
                    f"{_GGML}merges: entry {number}, {merge!r}, names {token!r}, which is no token"
                )
        merges.append(pair)
    backend = byte_level(vocab, merges, list(split.patterns), split.ignore_merges)
    if split.nfc:
        backend.normalizer = normalizers.NFC()
    added = [entry for entry in entries if entry.kind != Kind.NORMAL]
    backend.add_tokens([_added(entry) for entry in added])
    return backend, split.adds_bos


def _sentencepiece(
    metadata: Mapping[str, Any], entries: list[Entry], config: dict[str, Any]
) -> tokenizers.Tokenizer:
    """GGUF's user-defined tokens are those a model's authors added to its SentencePiece vocabulary."""
    unknown = config.get("unk_token", entries[0].text)
    # Some converters mark <unk> as control and their padding as unknown (Phi-3's).
    kinds = {Kind.UNKNOWN: Kind.CONTROL, Kind.USER_DEFINED: Kind.CONTROL, Kind.UNUSED: Kind.CONTROL}
    pieces = [
        Entry(
            entry.text,
            entry.score,
            Kind.UNKNOWN if entry.text == unknown else kinds.get(entry.kind, entry.kind),
        )
        for entry in entries
    ]
    prefix = _flag(metadata, "add_space_prefix", True)
    backend = backend_of(pieces, f"{_GGML}tokens", dummy_prefix=prefix)
    authors = [entry for entry in entries if entry.kind == Kind.USER_DEFINED]
    if authors:  # not special, so that decoding shows them
        backend.add_tokens([_added(entry) for entry in authors])
    return backend


def _added(entry: Entry) -> AddedToken:
    return AddedToken(entry.text, special=entry.kind != Kind.USER_DEFINED, normalized=False)


def _has(metadata: Mapping[str, Any], key: str) -> bool:
    return f"{_GGML}{key}" in metadata


def _get(metadata: Mapping[str, Any], key: str, kind: type) -> Any:
    value = metadata.get(f"{_GGML}{key}")
    if type(value) is not kind:
        what = "is missing" if value is None else f"must be {kind.__name__}, not {value!r}"
        raise RequestError(f"{_GGML}{key} {what}")
    return value


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    return _get(metadata, key, bool) if _has(metadata, key) else default


def _id(metadata: Mapping[str, Any], key: str, count: int) -> int | None:
    if not _has(metadata, key):
        return None
    id = _get(metadata, key, int)
    if not 0 <= id < count:
        raise RequestError(f"{_GGML}{key} is {id}; there are {count} tokens")
    return id


def _strings(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    value = metadata.get(f"{_GGML}{key}")
    if not isinstance(value, Iterable) or isinstance(value, (str, np.ndarray)):
        raise RequestError(f"{_GGML}{key} {'is missing' if value is None else 'must be strings'}")
    strings = list(value)
    if not all(isinstance(text, str) for text in strings):
        raise RequestError(f"{_GGML}{key} must be strings")
    return strings


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> np.ndarray:
    value = metadata.get(f"{_GGML}{key}")
    if not isinstance(value, np.ndarray) or value.shape != (count,):
        shown = "is missing" if value is None else f"must be {count} numbers, one a token"
        raise RequestError(f"{_GGML}{key} {shown}")
    return value
