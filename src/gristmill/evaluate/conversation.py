"""Chat prompts and answers as token ids, exactly as supervised fine-tuning sees them."""

from __future__ import annotations

from collections.abc import Sequence

from gristmill.errors import RequestError
from gristmill.lm import Message
from gristmill.tokenizer import Tokenizer


def split_answer(
    tokenizer: Tokenizer, prompt: Sequence[Message], answer: str
) -> tuple[list[int], list[int]]:
    """(ids up to where the assistant begins, ids of `answer` with the token that ends it)."""
    messages = [*prompt, {"role": "assistant", "content": answer}]
    ids, mask = tokenizer.chat_ids_with_mask(messages)
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    start = end
    while start and mask[start - 1]:
        start -= 1
    if start == end:
        raise RequestError("the chat template gives the assistant's answer no tokens to score")
    return ids[:start], ids[start:end]


def ask(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]
