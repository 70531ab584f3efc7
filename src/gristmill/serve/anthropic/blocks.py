"""A conversation in Anthropic's form, and what chat templates take of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from gristmill.serve.errors import FieldError
from gristmill.serve.flags import No
from gristmill.serve.openai.messages import MAX_MESSAGES
from gristmill.serve.openai.shapes import dumps

Told = dict[str, Any]


class Sent(BaseModel):
    """Unknown fields are let pass: clients send back what servers gave them."""

    model_config = ConfigDict(extra="allow", strict=True)


class CacheControl(Sent):
    """Without effect, since every prompt's beginning is cached."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Sent):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class PlainText(Sent):
    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: str


class Citations(Sent):
    enabled: No | None = None


class DocumentBlock(Sent):
    """Only one of plain text, which the model reads as part of the message."""

    type: Literal["document"]
    source: PlainText
    title: str | None = None
    context: str | None = None
    citations: Citations | None = None
    cache_control: CacheControl | None = None

    @property
    def text(self) -> str:
        lines = ["<document>", self.title, self.context, self.source.data, "</document>\n"]
        return "\n".join(line for line in lines if line)


class ToolUseBlock(Sent):
    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None

    def call(self) -> Told:
        arguments = dumps(self.input)
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": arguments},
        }


class ThinkingBlock(Sent):
    """signature: anyone's; it is not looked at."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinkingBlock(Sent):
    """A thought that only who made it can read: it is left out."""

    type: Literal["redacted_thinking"]
    data: str


def _kind(block: Any) -> str | None:
    """The tag of the block's class: pydantic puts it into the paths of errors, where class names are overlooked."""
    type = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return _TAGS.get(type) if isinstance(type, str) else None


_TAGS = {
    "text": "TextBlock",
    "document": "DocumentBlock",
    "tool_use": "ToolUseBlock",
    "tool_result": "ToolResultBlock",
    "thinking": "ThinkingBlock",
    "redacted_thinking": "RedactedThinkingBlock",
}
_TextBlock = Annotated[TextBlock, Tag("TextBlock")]
_DocumentBlock = Annotated[DocumentBlock, Tag("DocumentBlock")]


def _one_of(*types: str) -> Discriminator:
    told = f"must be a block of one of the types that are served here: {', '.join(types)}"
    return Discriminator(_kind, custom_error_type="invalid_value", custom_error_message=told)


class ToolResultBlock(Sent):
    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1)
    content: str | list[Annotated[_TextBlock | _DocumentBlock, _one_of("text", "document")]] = ""
    is_error: bool | None = None
    cache_control: CacheControl | None = None

    def told(self) -> Told:
        text = text_of(self.content)
        if self.is_error and not text.lower().startswith("error"):  # templates have no other place
            text = f"Error: {text}"
        return {"role": "tool", "content": text, "tool_call_id": self.tool_use_id}


Block = Annotated[
    _TextBlock
    | _DocumentBlock
    | Annotated[ToolUseBlock, Tag("ToolUseBlock")]
    | Annotated[ToolResultBlock, Tag("ToolResultBlock")]
    | Annotated[ThinkingBlock, Tag("ThinkingBlock")]
    | Annotated[RedactedThinkingBlock, Tag("RedactedThinkingBlock")],
    _one_of(*_TAGS),
]
_OF_ASSISTANTS = ("text", "tool_use", "thinking", "redacted_thinking")
_OF_OTHERS = {"user": ("text", "document", "tool_result"), "system": ("text",)}


class TurnMessage(Sent):
    """ctx and msg: Claude Code's, for what it tells the model besides the user's own words."""

    role: Literal["user", "assistant", "system", "ctx", "msg"]
    content: str | list[Block]

    def told(self, place: str) -> list[Told]:
        """As templates take it: results of tools are messages of their own, and come first."""
        role = "user" if self.role in ("ctx", "msg") else self.role
        blocks = _blocks(self.content)
        allowed = _OF_OTHERS.get(role, _OF_ASSISTANTS)
        for i, block in enumerate(blocks):
            if block.type not in allowed:
                told = f"a block of type {block.type!r} does not belong into a message of {role!r}"
                raise FieldError(f"{place}.content[{i}]", told)
        text = text_of([b for b in blocks if isinstance(b, TextBlock | DocumentBlock)])
        results = [b.told() for b in blocks if isinstance(b, ToolResultBlock)]
        if results:
            return [*results, {"role": role, "content": text}] if text else results
        message: Told = {"role": role, "content": text}
        calls = [b.call() for b in blocks if isinstance(b, ToolUseBlock)]
        if calls:
            message["tool_calls"] = calls
        thought = "".join(b.thinking for b in blocks if isinstance(b, ThinkingBlock))
        if thought:
            message["reasoning_content"] = thought
        return [message]


Turns = Annotated[list[TurnMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
Text = str | list[Annotated[_TextBlock, _one_of("text")]]


def conversation(system: Text | None, messages: list[TurnMessage]) -> list[Told]:
    """Consecutive messages of the user, or of the assistant, make one. Raises FieldError, naming the message."""
    told: list[Told] = [{"role": "system", "content": text_of(system)}] if system else []
    called: set[str] = set()
    for i, message in enumerate(messages):
        for each in message.told(f"messages[{i}]"):
            called |= {call["id"] for call in each.get("tool_calls", ())}
            if each["role"] == "tool" and each["tool_call_id"] not in called:
                id = each["tool_call_id"]
                raise FieldError(
                    f"messages[{i}]", f"the tool_use_id {id!r:.80} is of no tool_use before it"
                )
            if told and each["role"] in ("user", "assistant") and told[-1]["role"] == each["role"]:
                told[-1] = _joined(told[-1], each)
            else:
                told.append(each)
    return told


def text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _blocks(content: str | list[Any]) -> list[Any]:
    return [TextBlock(type="text", text=content)] if isinstance(content, str) else content


def _joined(first: Told, second: Told) -> Told:
    made = {**first, **second}
    for name in ("content", "reasoning_content"):
        made[name] = "\n\n".join(text for message in (first, second) if (text := message.get(name)))
    made["tool_calls"] = [*first.get("tool_calls", ()), *second.get("tool_calls", ())]
    return {name: value for name, value in made.items() if value or name == "content"}
