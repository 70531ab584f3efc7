"""What OpenAI's SDK declares, taken at its word: the SDK itself lets anything pass."""

from __future__ import annotations

from typing import Any, TypeVar

from openai import BaseModel
from openai.lib.streaming.chat import ChatCompletionStreamManager
from openai.types.chat import ParsedChatCompletion

from tests.declared import declared

T = TypeVar("T", bound=BaseModel)

# Ours and vLLM's, beside what the SDK declares.
OURS = {"seed", "reasoning_content", "citations", "found", "max_model_len", "parent", "root"}


def checked(got: T) -> T:
    """`got`, if it is of the types that its class declares, with no field that it does not."""
    # What helpers parse out of an answer is the SDK's own and never on the wire.
    sent = _without(got.to_dict(mode="python", warnings=False), {"parsed", "parsed_arguments"})
    known = type(got).model_validate(sent, strict=True)
    declared(known, OURS)
    return got


def accumulated(manager: ChatCompletionStreamManager[Any]) -> ParsedChatCompletion[Any]:
    """What the SDK puts together out of a stream, whose chunks are checked."""
    with manager as stream:
        for event in stream:
            if event.type == "chunk":
                checked(event.chunk)
        return stream.current_completion_snapshot


def _without(value: object, names: set[str]) -> object:
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return [_without(each, names) for each in value] if isinstance(value, list) else value
