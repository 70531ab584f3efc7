"""The API's routes. The application and the OpenAPI document are both made of this table."""

from __future__ import annotations

from gristmill.serve import anthropic, openai, operations
from gristmill.serve import schemas as gives
from gristmill.serve.openai import adapters, responses
from gristmill.serve.openapi import Operation

_PAGE = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 100},
    "order": gives.one_of("asc", "desc"),
    "after": gives.TEXT,
}

OPERATIONS = (
    Operation("GET", "/health", operations.health, "Whether the server is alive.", gives.HEALTH),
    Operation(
        "GET",
        "/ready",
        operations.ready,
        "Whether it takes requests.",
        gives.READY,
        differs={503: gives.NOT_READY},
    ),
    Operation("GET", "/version", operations.version, "Gristmill's version.", gives.VERSION),
    Operation("GET", "/metrics", operations.metrics, "What Prometheus scrapes."),
    Operation("GET", "/v1/models", operations.models, "Models and adapters.", gives.MODELS),
    Operation(
        "GET",
        "/v1/models/{name:path}",
        operations.model,
        "One of them.",
        gives.MODEL,
        refuses=(404,),
    ),
    Operation(
        "POST",
        "/v1/chat/completions",
        openai.chat,
        "Answer a conversation.",
        gives.CHAT,
        openai.ChatRequest,
        streams=True,
    ),
    Operation(
        "POST",
        "/v1/completions",
        openai.completions,
        "Continue texts.",
        gives.COMPLETION,
        openai.CompletionRequest,
        streams=True,
    ),
    Operation(
        "POST",
        "/v1/embeddings",
        openai.embeddings,
        "Texts as vectors.",
        gives.EMBEDDINGS,
        openai.EmbeddingRequest,
    ),
    Operation(
        "POST",
        "/v1/responses",
        responses.create,
        "A conversation's next turn, which is kept.",
        gives.RESPONSE,
        openai.ResponseRequest,
        streams=True,
    ),
    Operation(
        "GET",
        "/v1/responses/{id}",
        responses.get,
        "A response that was kept.",
        gives.RESPONSE,
        refuses=(400, 404),
    ),
    Operation(
        "DELETE",
        "/v1/responses/{id}",
        responses.delete,
        "Forget a response.",
        gives.RESPONSE_DELETED,
        refuses=(400, 404),
    ),
    Operation(
        "POST",
        "/v1/responses/{id}/cancel",
        responses.cancel,
        "End a response that is made in the background.",
        gives.RESPONSE,
        refuses=(400, 404),
    ),
    Operation(
        "GET",
        "/v1/responses/{id}/input_items",
        responses.input_items,
        "What a response answers.",
        gives.INPUT_ITEMS,
        query=_PAGE,
        refuses=(400, 404),
    ),
    Operation(
        "POST",
        "/v1/messages",
        anthropic.messages,
        "Answer a conversation, in Anthropic's form.",
        gives.MESSAGE,
        anthropic.MessagesRequest,
        streams=True,
    ),
    Operation(
        "POST",
        "/v1/messages/count_tokens",
        anthropic.count_tokens,
        "How many tokens such a request has.",
        gives.MESSAGE_TOKENS,
        anthropic.CountTokensRequest,
    ),
    Operation(
        "POST",
        "/v1/load_lora_adapter",
        adapters.load,
        "Serve a PEFT adapter of the server's own disk.",
        gives.ADAPTER,
        adapters.LoadAdapter,
    ),
    Operation(
        "POST",
        "/v1/unload_lora_adapter",
        adapters.unload,
        "Serve it no longer.",
        gives.ADAPTER,
        adapters.UnloadAdapter,
    ),
    Operation(
        "POST",
        "/tokenize",
        openai.tokenize,
        "A text's token ids, or a conversation's.",
        gives.TOKENS,
        openai.TokenizeRequest,
    ),
    Operation(
        "POST",
        "/detokenize",
        openai.detokenize,
        "The text of token ids.",
        gives.PROMPT,
        openai.DetokenizeRequest,
    ),
)
