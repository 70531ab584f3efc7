"""OpenAI's API, with vLLM's extensions."""

from gristmill.serve.openai import adapters, responses
from gristmill.serve.openai.chat import ChatRequest, chat
from gristmill.serve.openai.completions import CompletionRequest, completions
from gristmill.serve.openai.embeddings import EmbeddingRequest, embeddings
from gristmill.serve.openai.response_body import ResponseRequest
from gristmill.serve.openai.tokens import (
    DetokenizeRequest,
    TokenizeRequest,
    detokenize,
    tokenize,
)

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "ResponseRequest",
    "TokenizeRequest",
    "adapters",
    "chat",
    "completions",
    "detokenize",
    "embeddings",
    "responses",
    "tokenize",
]
