"""JSON Schemas of what the routes give: every field that is always there, and the type of every field."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def obj(optional: Schema | None = None, /, **properties: Schema) -> Schema:
    """An object that has all of `properties`, and of `optional` perhaps some."""
    both = {**properties, **(optional or {})}
    return {"type": "object", "properties": both, "required": list(properties)}


def array(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
TRUE: Schema = {"const": True}
ANY: Schema = {"type": "object"}

ERROR = obj(error=obj(message=TEXT, type=TEXT, param=maybe(TEXT), code=maybe(TEXT)))
ANTHROPIC_ERROR = obj(type=one_of("error"), error=obj(type=TEXT, message=TEXT))

# What a reader of server-sent events makes of one
EVENT = obj({"event": TEXT}, data=TEXT)

# Of the server itself
HEALTH = obj(status=one_of("ok"), requests_under_way=COUNT)
READY = obj({"detail": TEXT}, status=one_of("ready"))
NOT_READY = obj({"detail": TEXT}, status=one_of("loading", "draining"))
VERSION = obj(version=TEXT)
MODEL = obj(
    {"parent": TEXT, "root": TEXT},
    id=TEXT,
    object=one_of("model"),
    created=COUNT,
    owned_by=TEXT,
    max_model_len=COUNT,
)
MODELS = obj(object=one_of("list"), data=array(MODEL))
TOKENS = obj({"token_strs": array(TEXT)}, count=COUNT, max_model_len=COUNT, tokens=array(COUNT))
PROMPT = obj(prompt=TEXT)
ADAPTER = obj(status=one_of("ok"), id=TEXT)

# OpenAI's
_USAGE = obj(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    prompt_tokens_details=obj(cached_tokens=COUNT),
    completion_tokens_details=obj(reasoning_tokens=COUNT),
)
_REASON = one_of("stop", "length", "tool_calls")


def _made(kind: str, choice: Schema) -> Schema:
    return obj(
        id=TEXT,
        object=one_of(kind),
        created=COUNT,
        model=TEXT,
        system_fingerprint=TEXT,
        seed=COUNT,
        choices=array(choice),
        usage=_USAGE,
    )


_TOKEN = {"token": TEXT, "logprob": NUMBER, "bytes": array(COUNT)}
_CALL = obj(id=TEXT, type=one_of("function"), function=obj(name=TEXT, arguments=TEXT))
_CITATION = obj(source=TEXT, line=COUNT, title=TEXT, text=TEXT)
CHAT = _made(
    "chat.completion",
    obj(
        index=COUNT,
        message=obj(
            {
                "reasoning_content": TEXT,
                "tool_calls": array(_CALL),
                "citations": array(_CITATION),
                "found": FLAG,
            },
            role=one_of("assistant"),
            content=maybe(TEXT),
            refusal={"type": "null"},
        ),
        finish_reason=_REASON,
        logprobs=maybe(
            obj(
                content=array(obj(**_TOKEN, top_logprobs=array(obj(**_TOKEN)))),
                refusal={"type": "null"},
            )
        ),
    ),
)
COMPLETION = _made(
    "text_completion",
    obj(
        index=COUNT,
        text=TEXT,
        finish_reason=_REASON,
        logprobs=maybe(
            obj(
                tokens=array(TEXT),
                token_logprobs=array(maybe(NUMBER)),
                top_logprobs=array(maybe({"type": "object", "additionalProperties": NUMBER})),
                text_offset=array(COUNT),
            )
        ),
    ),
)
EMBEDDINGS = obj(
    object=one_of("list"),
    model=TEXT,
    data=array(
        obj(object=one_of("embedding"), index=COUNT, embedding={"anyOf": [array(NUMBER), TEXT]})
    ),
    usage=obj(prompt_tokens=COUNT, total_tokens=COUNT),
)
RESPONSE = obj(
    id=TEXT,
    object=one_of("response"),
    created_at=COUNT,
    completed_at=maybe(COUNT),
    status=one_of("completed", "failed", "in_progress", "cancelled", "incomplete"),
    error=maybe(obj(code=TEXT, message=TEXT)),
    incomplete_details=maybe(obj(reason=one_of("max_output_tokens"))),
    model=TEXT,
    output=array(obj(type=one_of("message", "function_call", "reasoning"), id=TEXT)),
    usage=maybe(
        obj(
            input_tokens=COUNT,
            input_tokens_details=obj(cached_tokens=COUNT, cache_write_tokens=COUNT),
            output_tokens=COUNT,
            output_tokens_details=obj(reasoning_tokens=COUNT),
            total_tokens=COUNT,
        )
    ),
    instructions=maybe(TEXT),
    metadata={"type": "object", "additionalProperties": TEXT},
    parallel_tool_calls=FLAG,
    previous_response_id=maybe(TEXT),
    store=FLAG,
    temperature=NUMBER,
    text=obj(format=ANY),
    tools=array(ANY),
    top_p=NUMBER,
)
RESPONSE_DELETED = obj(id=TEXT, object=one_of("response"), deleted=TRUE)
INPUT_ITEMS = obj(
    object=one_of("list"),
    data=array(obj(type=TEXT, id=TEXT)),
    first_id=TEXT,
    last_id=TEXT,
    has_more=FLAG,
)

# Anthropic's
_BLOCK = {
    "oneOf": [
        obj(type=one_of("text"), text=TEXT),
        obj(type=one_of("thinking"), thinking=TEXT, signature=TEXT),
        obj(type=one_of("tool_use"), id=TEXT, name=TEXT, input=ANY),
    ]
}
MESSAGE = obj(
    id=TEXT,
    type=one_of("message"),
    role=one_of("assistant"),
    model=TEXT,
    content=array(_BLOCK),
    stop_reason=one_of(
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
    ),
    stop_sequence=maybe(TEXT),
    usage=obj(
        input_tokens=COUNT,
        cache_creation_input_tokens=COUNT,
        cache_read_input_tokens=COUNT,
        output_tokens=COUNT,
    ),
)
MESSAGE_TOKENS = obj(input_tokens=COUNT)
