"""What requests to `/v1/messages` and `/v1/messages/count_tokens` may say."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from gristmill.lm import Grammar, SamplingParams
from gristmill.serve.anthropic.blocks import CacheControl, Sent, Told, Turns, conversation
from gristmill.serve.anthropic.blocks import Text as SystemText
from gristmill.serve.errors import FieldError
from gristmill.serve.exchange import Ask
from gristmill.serve.flags import No, Yes
from gristmill.serve.http import Body
from gristmill.serve.models import Served
from gristmill.serve.openai.messages import checked_tools
from gristmill.serve.openai.sampling import MAX_STOPS, Part, Word
from gristmill.serve.openai.shapes import dumps
from gristmill.serve.parsing import Choice, Named, Tool
from gristmill.serve.running import Names

MAX_TOOLS = 512


class InputSchema(Sent):
    type: Literal["object"]


class CustomTool(Sent):
    """eager_input_streaming: inputs always stream as they are written."""

    type: Literal["custom"] | None = None
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    input_schema: InputSchema
    description: str | None = None
    strict: bool | None = None
    input_examples: list[dict[str, Any]] | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: Yes | None = None
    defer_loading: No | None = None
    allowed_callers: list[Literal["direct"]] | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _custom(cls, type: Any) -> Any:
        if type not in (None, "custom"):
            raise ValueError(
                "must be custom: this server has no tools of its own and knows no one else's"
            )
        return type

    def tool(self) -> Tool:
        parts = [self.description or ""]
        if self.input_examples:
            parts += ["Examples of its input:", *map(dumps, self.input_examples)]
        schema = self.input_schema.model_dump()
        return Tool(self.name, "\n".join(filter(None, parts)), schema, bool(self.strict))


class ToolChoice(Part):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def choice(self) -> Choice:
        if (self.type == "tool") != (self.name is not None):
            raise FieldError("tool_choice.name", "goes with the type tool, and only with it")
        if self.type == "tool":
            return Named(self.name or "")
        return {"auto": "auto", "any": "required", "none": "none"}[self.type]  # type: ignore[return-value]


class Thinking(Part):
    """budget_tokens: a wish, which nothing here can hold the model to; max_tokens does."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized"] | None = None  # thoughts are shown as they are


class JSONFormat(Part):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Part):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JSONFormat | None = None


class Metadata(Sent):
    user_id: str | None = None


class CountTokensRequest(Body):
    """Everything that makes the prompt."""

    model: str | None = None
    messages: Turns
    system: SystemText | None = None
    tools: Annotated[list[CustomTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    # Documented, and without effect on an answer by their own definition.
    user_profile_id: str | None = None
    workspace_id: str | None = None

    REFUSED: ClassVar[dict[str, Any]] = {
        "container": None,
        "mcp_servers": [],
        "context_management": {"edits": []},
        "diagnostics": None,
        "inference_geo": None,
        "speed": "standard",
        "output_format": None,  # of a beta; now output_config.format
        "fallbacks": [],
        # Of betas
        "billing_policy": None,
        "compaction": None,
        "fallback_credit_token": None,
        "thread": None,
    }

    @property
    def unknown(self) -> list[str]:
        wish = ["thinking.budget_tokens"] if self.thinking and self.thinking.budget_tokens else []
        return super().unknown + wish

    @property
    def continued(self) -> bool:
        """The last message is the assistant's own, and goes on."""
        return self.messages[-1].role == "assistant"

    def conversation(self) -> list[Told]:
        """Raises FieldError."""
        told = conversation(self.system, self.messages)
        last = f"messages[{len(self.messages) - 1}]"
        if self.continued and "tool_calls" in told[-1]:
            raise FieldError(last, "a tool_use must be followed by the user's tool_result")
        if self.continued and "reasoning_content" in told[-1]:
            raise FieldError(last, "an answer that goes on cannot hold a thinking block")
        return told

    def tools_offered(self) -> tuple[tuple[Tool, ...], Choice]:
        """Raises FieldError."""
        specs = tuple(spec.tool() for spec in self.tools or ())
        return checked_tools(specs, self.tool_choice and self.tool_choice.choice())

    def variables(self, served: Served) -> dict[str, Any]:
        """For the template. Raises FieldError for what this model cannot be told."""
        given: dict[str, Any] = {}
        if self.output_config and self.output_config.effort:
            given["reasoning_effort"] = self.output_config.effort
        thinks = served.format.thought is not None
        wanted = self.thinking and self.thinking.type
        if wanted == "enabled" and not thinks:
            told = f"{served.name} does not think; leave it out, or say disabled"
            raise FieldError("thinking.type", told, "unsupported")
        if not thinks:
            return given
        if wanted in ("enabled", "adaptive"):
            if self.continued:
                raise FieldError(
                    "thinking.type", "an answer that goes on does not begin with thought"
                )
            given["enable_thinking"] = True
        elif wanted == "disabled" or self.continued:
            if wanted and "enable_thinking" not in (served.template or ""):
                told = f"{served.name} thinks when it wants: its chat template has no switch for it"
                raise FieldError("thinking.type", told, "unsupported")
            given["enable_thinking"] = False
        return given


class MessagesRequest(CountTokensRequest):
    """seed is ours; the response tells it in a header."""

    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    stop_sequences: Annotated[list[Word], Field(max_length=MAX_STOPS)] | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=0, lt=2**64)
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def ask(self, served: Served) -> Ask:
        """Raises FieldError."""
        if self.thinking is not None and (self.thinking.type == "enabled"):
            budget = self.thinking.budget_tokens
            if budget is None or budget >= self.max_tokens:
                told = f"must be given, and less than max_tokens ({self.max_tokens})"
                raise FieldError("thinking.budget_tokens", told)
        tools, choice = self.tools_offered()
        form = self.output_config and self.output_config.format
        if form and (tools or self.continued):
            beside = "tools; say tool_choice: none" if tools else "an answer that goes on"
            raise FieldError("output_config.format", f"cannot be given beside {beside}")
        params = SamplingParams(
            max_tokens=self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or None,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbits(31) if self.seed is None else self.seed,
            stop=tuple(self.stop_sequences or ()),
            grammar=Grammar("json_schema", form.schema_) if form else None,
        )
        return Ask(
            messages=self.conversation(),
            params=params,
            # No limit: max_tokens is required, and so only the most that may come.
            names=Names("messages", "output_config.format"),
            tools=tools,
            choice=choice,
            parallel=not (self.tool_choice and self.tool_choice.disable_parallel_tool_use),
            variables=self.variables(served),
            continued=self.continued,
        )
