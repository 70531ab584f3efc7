"""What a request to `/v1/responses` may say."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gristmill.lm import Grammar
from gristmill.serve.errors import FieldError
from gristmill.serve.exchange import Ask
from gristmill.serve.flags import No
from gristmill.serve.models import Served
from gristmill.serve.openai.messages import MAX_TOOLS, NAME, checked_tools
from gristmill.serve.openai.response_items import Fields, Items, messages_of
from gristmill.serve.openai.sampling import MAX_TOP_LOGPROBS, Part, Sampling
from gristmill.serve.parsing import Choice, Named, Tool
from gristmill.serve.running import Names

LOGPROBS = "message.output_text.logprobs"


class FunctionTool(Part):
    type: Literal["function"]
    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> Tool:
        return Tool(self.name, self.description or "", self.parameters or {}, bool(self.strict))


class ToolName(Part):
    type: Literal["function"]
    name: str


class AllowedTools(Part):
    """Some of the tools, from which the model may or must choose."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolName], Field(min_length=1, max_length=MAX_TOOLS)]


class TextFormat(Part):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def as_grammar(self) -> Grammar | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar("json_object")
        for name, value in (("name", self.name), ("schema", self.schema_)):
            if value is None:
                raise FieldError(f"text.format.{name}", "must be given", "missing")
        return Grammar("json_schema", self.schema_ or {})


class TextOptions(Part):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Part):
    """No summaries are written: the thought itself is in the answer."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class StreamOptions(Part):
    include_obfuscation: No | None = None


Label = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]


class ResponseRequest(Sampling):
    input: str | Items
    instructions: str | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    # Of built-in tools only, and there are none.
    max_tool_calls: int | None = Field(None, ge=1)
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolName | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    metadata: dict[Label, Value] | None = Field(None, max_length=16)
    stream_options: StreamOptions | None = None

    REFUSED: ClassVar[dict[str, Any]] = {
        **Sampling.REFUSED,
        "truncation": "disabled",  # nothing is left out of a conversation silently
        "conversation": None,
        "prompt": None,
        "context_management": [],
        "access_programs": None,
        "image": None,
        "background_options": {"completion_window": "soonest"},
        # Chat's, which mean something else here or have another name.
        "n": 1,
        "messages": None,
        "max_tokens": None,
        "max_completion_tokens": None,
        "response_format": None,
        "reasoning_effort": None,
        "logprobs": False,
    }

    def check_echo(self) -> None:
        """The response repeats what was asked: it must be JSON that can be written. Raises FieldError."""
        for name, value in self.model_dump(exclude_unset=True).items():
            try:
                json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
            except ValueError:
                told = "holds half of a surrogate pair, or a number that is out of range"
                raise FieldError(name, told) from None

    def grammar(self) -> Grammar | None:
        forms = (self.structured_outputs, self.text and self.text.format)
        grammars = [grammar for form in forms if form and (grammar := form.as_grammar())]
        if len(grammars) > 1:
            raise FieldError("structured_outputs", "cannot be given beside text.format")
        return grammars[0] if grammars else None

    def ask(self, served: Served, earlier: list[Fields], items: list[Fields]) -> Ask:
        """earlier: the items of the responses before. Raises FieldError."""
        with_logprobs = LOGPROBS in (self.include or ())
        if self.top_logprobs and not with_logprobs:
            raise FieldError("top_logprobs", f'needs include: ["{LOGPROBS}"]')
        messages = messages_of(earlier, items)
        if not messages or messages[-1]["role"] == "assistant":
            raise FieldError("input", "must end with an item that is not the assistant's own")
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        tools, choice = self._tools()
        if tools and self.grammar() is not None:
            raise FieldError("text.format", "cannot be given beside tools; say tool_choice: none")
        limit = self.max_output_tokens
        return Ask(
            messages=messages,
            params=self.params(
                limit or served.context, (self.top_logprobs or 0) if with_logprobs else None
            ),
            names=Names("input", "text.format", None if limit is None else "max_output_tokens"),
            tools=tools,
            choice=choice,
            parallel=self.parallel_tool_calls is not False,
            variables=self._variables(),
            cache_salt=self.cache_salt or "",
        )

    def echo(self) -> Fields:
        """The fields of the response that repeat the request's."""
        form, choice = self.text and self.text.format, self.tool_choice
        tools = [{**tool.model_dump(), "strict": bool(tool.strict)} for tool in self.tools or ()]
        return {
            "background": bool(self.background),
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": self.reasoning and self.reasoning.effort, "summary": None},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {
                "format": form.model_dump(by_alias=True, exclude_none=True)
                if form
                else {"type": "text"},
                "verbosity": "medium",
            },
            "tool_choice": choice.model_dump() if isinstance(choice, Part) else choice or "auto",
            "tools": tools,
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
            "user": self.user,
        }

    def _tools(self) -> tuple[tuple[Tool, ...], Choice]:
        tools = tuple(spec.tool() for spec in self.tools or ())
        choice = self.tool_choice
        if isinstance(choice, ToolName):
            return checked_tools(tools, Named(choice.name))
        if not isinstance(choice, AllowedTools):
            return checked_tools(tools, choice)
        allowed = [each.name for each in choice.tools]
        for name in allowed:
            checked_tools(tools, Named(name), "tool_choice.tools")
        return checked_tools(tuple(tool for tool in tools if tool.name in allowed), choice.mode)

    def _variables(self) -> dict[str, Any]:
        effort = self.reasoning and self.reasoning.effort
        if effort is None:
            return {}
        return {"reasoning_effort": effort, "enable_thinking": effort != "none"}
