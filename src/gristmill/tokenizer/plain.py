"""A tokenizer without its control tokens: whatever text says, it stays text."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

import tokenizers

from gristmill.errors import RequestError
from gristmill.tokenizer.patterns import BYTE_OF_CHARACTER

_UNKNOWN_PENALTY = (
    10.0  # what tokenizers' Unigram charges for an unknown character, below the worst score
)


def without_control_tokens(content: dict[str, Any], control: Set[str]) -> tokenizers.Tokenizer:
    """What a tokenizer.json describes, but that it reads every control token as plain text.

    `encode_special_tokens` would still match added tokens that are not flagged special (<think>, <tool_call>),
    so they are taken out; also out of a BPE vocabulary and its merges, and out of a Unigram's reach, where the
    model itself could find them.
    """
    kept = [token for token in content["added_tokens"] if token["content"] not in control]
    model = dict(content["model"])
    content = {**content, "added_tokens": kept, "post_processor": None, "model": model}
    if model.get("type") == "BPE":
        needed = {model.get("unk_token"), *BYTE_OF_CHARACTER}
        out = control - needed
        merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [m for m in merges if not out & {*m, "".join(m)}]
        model["vocab"] = {text: id for text, id in model["vocab"].items() if text not in out}
        # An added token outside the vocabulary is numbered anew on reading; one inside keeps its id.
        model["vocab"].update({token["content"]: token["id"] for token in kept})
    elif model.get("type") == "Unigram":
        worst = min((score for text, score in model["vocab"] if text not in control), default=0.0)
        model["vocab"] = [
            # dearer than its characters, were they all unknown
            [text, (worst - _UNKNOWN_PENALTY) * (len(text) + 1) if text in control else score]
            for text, score in model["vocab"]
        ]
    plain = tokenizers.Tokenizer.from_str(json.dumps(content))
    for token in kept:
        if plain.token_to_id(token["content"]) != token["id"]:
            raise RequestError(
                f"cannot read this tokenizer: its added token {token['content']!r} has no id of its own"
            )
    return plain
