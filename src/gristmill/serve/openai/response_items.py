"""The items that conversations of `/v1/responses` are made of, and the messages that chat templates take of them.

An item is kept as a dict in the form in which the API lists it: with an id, and text in parts.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from gristmill.serve.errors import FieldError
from gristmill.serve.openai.messages import MAX_MESSAGES

Fields = dict[str, Any]


def new_id(kind: str) -> str:
    """kind: "resp", "msg", "rs", "fc" or "fco". Nobody guesses one."""
    return f"{kind}_{secrets.token_hex(24)}"


class _Sent(BaseModel):
    """Unknown fields are let pass: clients send back what servers gave them."""

    model_config = ConfigDict(extra="allow", strict=True)


class TextPart(_Sent):
    type: Literal["input_text", "output_text"]
    text: str


class ThoughtPart(_Sent):
    type: Literal["reasoning_text", "summary_text"]
    text: str


def _joined(content: str | Sequence[TextPart | ThoughtPart] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


class MessageItem(_Sent):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[TextPart]
    id: str | None = None

    def kept(self) -> Fields:
        """As the API lists it."""
        text = _joined(self.content)
        part: Fields = {"type": "input_text", "text": text}
        if self.role == "assistant":
            part = {"type": "output_text", "text": text, "annotations": []}
        fields = {"type": "message", "role": self.role, "status": "completed", "content": [part]}
        return {"id": self.id or new_id("msg"), **fields}


class FunctionCallItem(_Sent):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str
    arguments: str
    id: str | None = None

    def kept(self) -> Fields:
        fields = {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        id = self.id or new_id("fc")
        return {"id": id, "type": "function_call", "status": "completed", **fields}


class FunctionCallOutputItem(_Sent):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: str | list[TextPart]
    id: str | None = None

    def kept(self) -> Fields:
        fields = {"call_id": self.call_id, "output": _joined(self.output)}
        id = self.id or new_id("fco")
        return {"id": id, "type": "function_call_output", "status": "completed", **fields}


class ReasoningItem(_Sent):
    type: Literal["reasoning"]
    summary: list[ThoughtPart] | None = None
    content: list[ThoughtPart] | None = None
    encrypted_content: None = None  # only who encrypted it can read it
    id: str | None = None

    def kept(self) -> Fields:
        text = _joined(self.content) or _joined(self.summary)
        content = [{"type": "reasoning_text", "text": text}] if text else []
        id = self.id or new_id("rs")
        return {"id": id, "type": "reasoning", "summary": [], "content": content}


# Capitals: these names are no part of a field's path.
_TAGS = {
    "message": "MESSAGE",
    "function_call": "CALL",
    "function_call_output": "OUTPUT",
    "reasoning": "THOUGHT",
}


def _tag(item: Any) -> str | None:
    """Of what was sent, or of what was made of it."""
    if isinstance(item, _Sent):
        return _TAGS[getattr(item, "type", None) or "message"]
    kind = item.get("type") if isinstance(item, dict) else None
    if kind is None and isinstance(item, dict) and "role" in item:
        return "MESSAGE"
    return _TAGS.get(kind) if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("MESSAGE")]
    | Annotated[FunctionCallItem, Tag("CALL")]
    | Annotated[FunctionCallOutputItem, Tag("OUTPUT")]
    | Annotated[ReasoningItem, Tag("THOUGHT")],
    Discriminator(
        _tag,
        custom_error_type="item",
        custom_error_message="must be a message, function_call, function_call_output or reasoning item",
    ),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]


def kept_items(sent: str | list[Item]) -> list[Fields]:
    """A string is a message of the user's."""
    items = [MessageItem(role="user", content=sent)] if isinstance(sent, str) else sent
    return [item.kept() for item in items]


def messages_of(earlier: Sequence[Fields], items: Sequence[Fields]) -> list[Fields]:
    """What templates take: the items between two turns of others are one turn of the assistant's.

    earlier: of the responses before. Raises FieldError, naming the item of `input`.
    """
    messages: list[Fields] = []
    called: set[str] = set()
    for place, item in enumerate((*earlier, *items), -len(earlier)):
        match item["type"]:
            case "message" if item["role"] != "assistant":
                # "developer" is OpenAI's newer name for it, which templates do not know.
                role = "system" if item["role"] == "developer" else item["role"]
                messages.append({"role": role, "content": _text(item)})
            case "message":
                turn = _turn(messages, new_after=("content",), unless="tool_calls")
                turn["content"] += _text(item)
            case "reasoning":
                if item["content"]:
                    turn = _turn(messages, new_after=("content", "tool_calls"))
                    turn["reasoning_content"] = turn.get("reasoning_content", "") + _text(item)
            case "function_call":
                called.add(item["call_id"])
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                _turn(messages).setdefault("tool_calls", []).append(call)
            case _:
                if item["call_id"] not in called:
                    raise FieldError(
                        f"input[{place}].call_id", "is of no function_call in the items before it"
                    )
                fields = {"content": item["output"], "tool_call_id": item["call_id"]}
                messages.append({"role": "tool", **fields})
    return messages


def _turn(
    messages: list[Fields], new_after: Sequence[str] = (), unless: str | None = None
) -> Fields:
    """The assistant's turn that goes on; a new one where the last message is another's, or already has one of
    `new_after` (and not `unless`)."""
    last = messages[-1] if messages else {"role": ""}
    over = any(last.get(name) for name in new_after) and not (unless and last.get(unless))
    if last["role"] != "assistant" or over:
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(item: Fields) -> str:
    return "".join(part["text"] for part in item["content"])
