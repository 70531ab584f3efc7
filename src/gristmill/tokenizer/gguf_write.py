"""The GGUF metadata of a tokenizer, where some name in it means exactly what the tokenizer does."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gristmill.errors import RequestError
from gristmill.tokenizer.patterns import DIGIT, GPT2, PRE
from gristmill.tokenizer.pieces import SPACE, Entry, Kind, merges_of
from gristmill.tokenizer.tokenizer import TURN_ENDS, Tokenizer

_GGML = "tokenizer.ggml."
_PREFIX = {"type": "Prepend", "prepend": SPACE}
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def to_gguf_metadata(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """`tokenizer.ggml.*` and `tokenizer.chat_template`; `from_gguf_metadata` of it gives equal ids.

    The vocabulary is padded to `vocab_size`, the model's, with unused names. Raises RequestError, saying what to
    do, for a tokenizer that GGUF cannot name: llama.cpp would read it as another without an error.
    """
    if vocab_size < tokenizer.vocab_size:
        raise RequestError(
            f"a vocabulary of {vocab_size} is too small for the tokenizer's {tokenizer.vocab_size} tokens"
        )
    if tokenizer.eos_id is None:
        raise RequestError(
            "the tokenizer names no eos_token, and llama.cpp would take token 11 for it; name one in "
            "tokenizer_config.json"
        )
    content = json.loads(tokenizer.backend.to_str())
    texts, kinds = _tokens(tokenizer, content, vocab_size)
    if (
        content["model"].get("type") == "BPE"
        and (content["decoder"] or {}).get("type") == "ByteLevel"
    ):
        merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
        metadata = {"model": "gpt2", "pre": _pre(tokenizer, content), "tokens": texts}
        metadata |= {"token_type": kinds, "merges": merges}
    else:
        prefix = _space_prefix(content)
        scores = _scores(content["model"], texts, kinds)
        metadata = {"model": "llama", "pre": "default", "tokens": texts, "scores": scores}
        metadata |= {"token_type": kinds, "add_space_prefix": prefix}
    metadata |= _ids(tokenizer)
    metadata = {_GGML + key: value for key, value in metadata.items()}
    if tokenizer.config.get("chat_template") is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def _ids(tokenizer: Tokenizer) -> dict[str, Any]:
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    if tokenizer.before not in ([], [bos]) or tokenizer.after not in ([], [eos]):
        raise RequestError(
            f"GGUF can put BOS before a text and EOS after it; this tokenizer puts {tokenizer.before} "
            f"before and {tokenizer.after} after"
        )
    turn_ends = [tokenizer.special_tokens.get(name) for name in TURN_ENDS]
    unknown = tokenizer.config.get("unk_token")
    ids = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "eot_token_id": next((id for id in turn_ends if id in tokenizer.stop_ids), None),
        "padding_token_id": tokenizer.pad_id,
        "unknown_token_id": tokenizer.special_tokens.get(unknown)
        if isinstance(unknown, str)
        else None,
    }
    flags = {"add_bos_token": bool(tokenizer.before), "add_eos_token": bool(tokenizer.after)}
    return {key: id for key, id in ids.items() if id is not None} | flags


def _tokens(
    tokenizer: Tokenizer, content: dict[str, Any], vocab_size: int
) -> tuple[list[str], np.ndarray]:
    """Every id's text and type; ids that no token has are unused, under names of their own."""
    texts = {id: text for text, id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    taken = set(texts.values())
    kinds = np.full(vocab_size, Kind.UNUSED, np.int32)
    for id in range(vocab_size):
        if id in texts:
            kinds[id] = Kind.NORMAL
        else:
            name = f"[PAD{id}]"
            while name in taken:
                name = f"[{name}]"
            texts[id] = name
            taken.add(name)
    if content["model"].get("byte_fallback"):
        for byte in range(256):
            id = tokenizer.backend.token_to_id(f"<0x{byte:02X}>")
            if id is not None:
                kinds[id] = Kind.BYTE
    for token in content["added_tokens"]:
        kinds[token["id"]] = Kind.CONTROL if token["special"] else Kind.USER_DEFINED
    unknown = tokenizer.backend.token_to_id(content["model"].get("unk_token") or "")
    if unknown is not None and content["model"].get("byte_fallback"):
        kinds[unknown] = Kind.UNKNOWN
    return [texts[id] for id in range(vocab_size)], kinds


def _pre(tokenizer: Tokenizer, content: dict[str, Any]) -> str:
    """The name of the tokenizer's way to split text and merge it."""
    patterns = tuple(_patterns(content["pre_tokenizer"]))
    normalizer = content["normalizer"]
    nfc = normalizer == {"type": "NFC"}
    if normalizer is not None and not nfc:
        raise _unnamed(f"its normalizer is {normalizer}")
    same = [pre for pre, split in PRE.items() if split.patterns == patterns and split.nfc == nfc]
    if not same:
        what = " with NFC" if nfc else ""
        raise _unnamed(f"it splits text by {' then '.join(map(repr, patterns)) or 'nothing'}{what}")
    model = content["model"]
    if model.get("byte_fallback") or model.get("continuing_subword_prefix"):
        raise _unnamed("its byte-level BPE has byte_fallback or a subword prefix")
    ignore = bool(model.get("ignore_merges"))
    exact = [pre for pre in same if PRE[pre].ignore_merges == ignore]
    if not exact and not _merges_make_every_token(tokenizer):
        raise _unnamed(f"ignore_merges is {ignore}, and merging alone does not make every token")
    return (exact or same)[0]


def _merges_make_every_token(tokenizer: Tokenizer) -> bool:
    """Whether `ignore_merges`, which takes a piece that is a token as it is, makes no difference."""
    added = set(tokenizer.backend.get_added_tokens_decoder())
    merging = type(tokenizer.plain).from_str(tokenizer.plain.to_str())
    merging.model.ignore_merges = False  # type: ignore[attr-defined]
    merging.pre_tokenizer = merging.normalizer = None  # type: ignore[assignment]
    vocab = tokenizer.plain.get_vocab()
    return all(
        id in added or merging.encode(text, add_special_tokens=False).ids == [id]
        for text, id in vocab.items()
    )


def _patterns(step: dict[str, Any] | None) -> list[str]:
    """The patterns that a pre-tokenizer cuts by, one after another."""
    step = step or {}
    kind = step.get("type")
    if kind == "Sequence":
        return [pattern for inner in step["pretokenizers"] for pattern in _patterns(inner)]
    if kind == "Digits" and step.get("individual_digits"):
        return [DIGIT]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [GPT2] if step.get("use_regex", True) else []
    if kind == "Split" and not step.get("invert") and step["behavior"] == "Isolated":
        pattern = step["pattern"].get("Regex")
        if pattern is not None:
            return [pattern]
    raise _unnamed(f"its pre-tokenizer is {step}")


def _unnamed(why: str) -> RequestError:
    return RequestError(
        f"GGUF has no name for this tokenizer: {why}. Export to another format, or retrain it with a split "
        f"that has one ({', '.join(list(PRE)[:5])}, …)"
    )


def _space_prefix(content: dict[str, Any]) -> bool:
    """Whether a SentencePiece-like tokenizer begins every text with a space, if it is one that GGUF means."""
    normalizer = content["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    model = content["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback") or not model.get("fuse_unk"):
        raise _unnamed(
            f"its model is {model.get('type')}, neither byte-level BPE nor SentencePiece's"
        )
    if model.get("ignore_merges") or content["pre_tokenizer"] is not None:
        raise _unnamed(f"its pre-tokenizer is {content['pre_tokenizer']}")
    if steps not in ([_PREFIX, _SPACES], [_SPACES]):
        raise _unnamed(f"its normalizer is {normalizer}")
    return len(steps) == 2


def _scores(model: dict[str, Any], texts: list[str], kinds: np.ndarray) -> np.ndarray:
    """Scores by which merging the best pair first follows the model's list of merges."""
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    rank = {text: at for at, text in enumerate(dict.fromkeys("".join(pair) for pair in merges))}
    # Pieces that nothing merges into come last; their scores are never asked for.
    scores = [-float(rank.get(text, len(rank) + id)) for id, text in enumerate(texts)]
    rows = zip(texts, scores, kinds.tolist(), strict=True)
    entries = [Entry(text, score, Kind(kind)) for text, score, kind in rows]
    made = ["".join(pair) for pair in merges]
    again = merges_of(entries)
    if sorted(again) != sorted(merges) or ["".join(pair) for pair in again] != made:
        raise _unnamed("its merges are not those of a SentencePiece vocabulary")
    return np.array(scores, np.float32)
