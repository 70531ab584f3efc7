"""A conversation and its tools in OpenAI's form, and what chat templates take of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gristmill.serve.errors import FieldError
from gristmill.serve.openai.sampling import Part
from gristmill.serve.parsing import Choice, Named, Tool

MAX_MESSAGES, MAX_TOOLS = 4096, 128
NAME = r"^[a-zA-Z0-9_.-]{1,64}$"


class TextPart(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["text"]
    text: str


class FunctionCall(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    name: str
    arguments: str


class ToolCall(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


# Documented fields of messages, which change what was said.
_NOT_SERVED = {
    "function_call": "say it by tool_calls",
    "audio": "send what was said as content",
}


class ChatMessage(BaseModel):
    """Unknown fields are let pass: clients send back what servers gave them."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    def told(self, place: str) -> dict[str, Any]:
        """As templates take it."""
        for name, cure in _NOT_SERVED.items():
            if (self.model_extra or {}).get(name) is not None:
                raise FieldError(f"{place}.{name}", f"is not served here; {cure}", "unsupported")
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        if content is None and not (self.role == "assistant" and self.tool_calls):
            raise FieldError(
                f"{place}.content", "must be a string or a list of text parts", "missing"
            )
        # "developer" is OpenAI's newer name for it, which templates do not know.
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": content or ""}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls and role != "assistant":
            raise FieldError(f"{place}.tool_calls", "belongs to an assistant's message")
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": c.function.model_dump()}
                for c in self.tool_calls
            ]
        if role == "tool":
            if self.tool_call_id is None:
                raise FieldError(
                    f"{place}.tool_call_id", "must name the call it answers", "missing"
                )
            message["tool_call_id"] = self.tool_call_id
        thought = self.reasoning_content if self.reasoning_content is not None else self.reasoning
        if thought is not None:
            message["reasoning_content"] = thought
        return message


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


def conversation(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Raises FieldError, naming the message."""
    told = [message.told(f"messages[{i}]") for i, message in enumerate(messages)]
    called: set[str] = set()
    for i, message in enumerate(told):
        called |= {call["id"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and message["tool_call_id"] not in called:
            raise FieldError(
                f"messages[{i}].tool_call_id", "is of no call in the messages before it"
            )
    return told


class Function(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Part):
    type: Literal["function"]
    function: Function

    def tool(self) -> Tool:
        f = self.function
        return Tool(f.name, f.description or "", f.parameters or {}, bool(f.strict))


Tools = Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)]


class FunctionName(Part):
    name: str


class NamedTool(Part):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def tools_of(
    specs: list[ToolSpec] | None, choice: ToolChoice | None
) -> tuple[tuple[Tool, ...], Choice]:
    """Raises FieldError for a choice that the tools do not offer."""
    tools = tuple(spec.tool() for spec in specs or ())
    named = Named(choice.function.name) if isinstance(choice, NamedTool) else choice
    return checked_tools(tools, named)


def checked_tools(
    tools: tuple[Tool, ...], choice: Choice | None, place: str = "tool_choice"
) -> tuple[tuple[Tool, ...], Choice]:
    """What may be called. None: "auto" where there are tools."""
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FieldError("tools", f"has two tools called {twice!r}")
    if isinstance(choice, Named) and choice.name not in names:
        raise FieldError(place, f"names {choice.name!r}, which is none of the tools")
    if choice == "required" and not tools:
        raise FieldError(place, "is required, and there are no tools")
    if choice == "none" or not tools:
        return (), "none"
    return tools, choice or "auto"
