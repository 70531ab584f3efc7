"""The sampling fields that chat and completions share, by OpenAI's and vLLM's names."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from gristmill.errors import RequestError
from gristmill.lm import Grammar, SamplingParams
from gristmill.serve.errors import FieldError
from gristmill.serve.flags import No
from gristmill.serve.http import Body

MAX_STOPS, MAX_TOP_LOGPROBS, MAX_ANSWERS = 16, 20, 64
MAX_LISTED = 4096  # entries of a list of ids or words

Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=MAX_LISTED)]
Word = Annotated[str, Field(min_length=1, max_length=4096)]
NonNegative = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A part of a body that has no unknown fields: whoever sends one means something by it."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Part):
    include_usage: bool | None = None
    include_obfuscation: No | None = None


class StructuredOutputs(Part):
    """vLLM's: exactly one of them."""

    # json would hide a method of pydantic's
    json_schema: dict[str, Any] | str | None = Field(None, alias="json")
    regex: Word | None = None
    choice: list[Word] | None = None
    grammar: str | None = Field(None, max_length=1 << 18)
    json_object: bool | None = None

    def as_grammar(self) -> Grammar | None:
        given = [n for n in type(self).model_fields if getattr(self, n) not in (None, False)]
        if len(given) != 1:
            raise FieldError(
                "structured_outputs", "must have one of json, regex, choice, grammar, json_object"
            )
        match given[0]:
            case "json_schema" if isinstance(self.json_schema, str):
                raise FieldError("structured_outputs.json", "must be the schema as an object")
            case "json_object":
                return Grammar("json_object")
            case "grammar":
                return Grammar("lark", self.grammar or "")
            case kind:
                return Grammar(kind, getattr(self, kind))  # type: ignore[arg-type] - one of those left


class JSONSchema(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Part):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    def as_grammar(self) -> Grammar | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar("json_object")
        if self.json_schema is None:
            raise FieldError("response_format.json_schema", "must be given", "missing")
        return Grammar("json_schema", self.json_schema.schema_ or {})


class Sampling(Body):
    # Documented, and without effect on an answer by their own definition: user to prompt_cache_key.
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Word | Annotated[list[Word], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Ids | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_LISTED
    )
    min_tokens: NonNegative | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: Annotated[list[Word], Field(max_length=256)] | None = None
    allowed_token_ids: Ids | None = None
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = None
    cache_salt: str | None = Field(None, max_length=256)
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    REFUSED: ClassVar[dict[str, Any]] = {
        "moderation": None,
        "prompt_cache_options": None,
        "prompt_logprobs": None,
        "priority": 0,
        "guided_json": None,
        "guided_regex": None,
        "guided_choice": None,
        "guided_grammar": None,
        "truncate_prompt_tokens": None,
        "return_token_ids": False,
        "use_beam_search": False,
    }

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def form_field(self) -> str:
        return "response_format" if self.structured_outputs is None else "structured_outputs"

    def grammar(self) -> Grammar | None:
        given = [f for f in (self.structured_outputs, self.response_format) if f is not None]
        grammars = [g for g in (form.as_grammar() for form in given) if g is not None]
        if len(grammars) > 1:
            raise FieldError("structured_outputs", "cannot be given beside response_format")
        return grammars[0] if grammars else None

    def params(self, max_tokens: int, logprobs: int | None, **more: Any) -> SamplingParams:
        """Raises FieldError."""
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options", "belongs to a request with stream: true")
        stop = self.stop or []
        seed, top_k = self.seed, self.top_k
        try:
            return SamplingParams(
                max_tokens=max_tokens,
                logprobs=logprobs,
                n=self.n or 1,
                temperature=_or(self.temperature, 1.0),
                top_k=top_k if top_k and top_k > 0 else None,  # vLLM: 0 and -1 are off
                top_p=_or(self.top_p, 1.0),
                min_p=_or(self.min_p, 0.0),
                repetition_penalty=_or(self.repetition_penalty, 1.0),
                frequency_penalty=_or(self.frequency_penalty, 0.0),
                presence_penalty=_or(self.presence_penalty, 0.0),
                seed=secrets.randbits(31) if seed is None else seed % 2**64,
                stop=(stop,) if isinstance(stop, str) else tuple(stop),
                stop_token_ids=tuple(self.stop_token_ids or ()),
                logit_bias=self._bias(),
                min_tokens=self.min_tokens or 0,
                ignore_eos=bool(self.ignore_eos),
                include_stop=bool(self.include_stop_str_in_output),
                skip_special_tokens=self.skip_special_tokens is not False,
                bad_words=tuple(self.bad_words or ()),
                allowed_token_ids=None
                if self.allowed_token_ids is None
                else tuple(self.allowed_token_ids),
                grammar=self.grammar(),
                **more,
            )
        except FieldError:
            raise
        except RequestError as error:  # "min_tokens must be …": what only all of them together show
            name, _, told = str(error).partition(" ")
            raise FieldError(name.rstrip(":"), told) from None

    def _bias(self) -> dict[int, float]:
        bias = self.logit_bias or {}
        for key in bias:
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise FieldError("logit_bias", f"must have token ids as keys, not {key!r:.40}")
        return {int(key): value for key, value in bias.items()}


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
