"""What a model's answer is made of, as it arrives: text, thought and calls of tools.

A `Parser` reads the generated text piece by piece and tells these events; a `Message` folds
them, so that the whole answer and the streamed one are made from the same events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer's content."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the model's thought."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolStart:
    """Call number `index` of this answer begins; `id` is unique, `name` is a declared tool."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """A piece of call `index`'s arguments: JSON text just as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolEnd:
    """Call `index` is complete. A call that the token limit cut off has no such event."""

    index: int


Event = Text | Reasoning | ToolStart | ToolArguments | ToolEnd


class Parser(Protocol):
    """Reads one answer's text, in pieces cut anywhere."""

    def feed(self, text: str) -> list[Event]:
        """The events that are certain after this piece of text."""
        ...

    def finish(self) -> list[Event]:
        """The events of what was held back, once the answer is over."""
        ...


@dataclass
class Call:
    """One call of a tool; `complete` is False where the answer ended inside its arguments."""

    id: str
    name: str
    arguments: str = ""
    complete: bool = False


@dataclass
class Message:
    """An answer, folded from its events."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[Call] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Take in the next event."""
        match event:
            case Text(text):
                self.content += text
            case Reasoning(text):
                self.reasoning += text
            case ToolStart(_, id, name):
                self.tool_calls.append(Call(id, name))
            case ToolArguments(index, text):
                self.tool_calls[index].arguments += text
            case ToolEnd(index):
                self.tool_calls[index].complete = True


@dataclass(frozen=True)
class Tool:
    """A tool that a request declares: `parameters` is the JSON schema of its arguments; `strict`
    asks that every call's arguments be valid under it."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True)
class Named:
    """The choice of exactly one tool, which must be called."""

    name: str


Choice = Literal["auto", "none", "required"] | Named
