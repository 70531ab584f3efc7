"""From a conversation to the ids that the model continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gristmill.serve.errors import FieldError
from gristmill.serve.parsing import Format, Tool, for_template
from gristmill.tokenizer import Tokenizer

_OURS = {"messages", "tools", "add_generation_prompt"}


@dataclass(frozen=True)
class Prompt:
    """in_reasoning: the template has opened a thought, and the model writes inside it."""

    ids: list[int]
    in_reasoning: bool


def make_prompt(
    tokenizer: Tokenizer,
    format: Format,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool] = (),
    variables: Mapping[str, Any] | None = None,
    continued: bool = False,
) -> Prompt:
    """variables: for the template. continued: the last message, the assistant's, goes on.

    Raises RequestError for what the template refuses.
    """
    given = dict(variables or {})
    taken = sorted(_OURS & given.keys())
    if taken:
        raise FieldError(
            f"chat_template_kwargs.{taken[0]}", "has a field of its own in the request"
        )
    told, offered = for_template(tokenizer.chat_template, messages, tools)
    if offered:
        given["tools"] = offered
    beginning = ""
    if continued:
        beginning = str(told[-1].get("content", ""))
        told = told[:-1]
    ids = tokenizer.chat_ids(told, add_generation_prompt=True, **given)
    in_reasoning = format.opens_thought(tokenizer.decode(ids[-16:], skip_special=False))
    if beginning:
        ids += tokenizer.encode(beginning)
        in_reasoning = in_reasoning and format.still_in_thought(beginning)
    return Prompt(ids, in_reasoning)
