"""Anthropic's API."""

from gristmill.serve.anthropic.body import CountTokensRequest, MessagesRequest
from gristmill.serve.anthropic.messages import count_tokens, messages

__all__ = ["CountTokensRequest", "MessagesRequest", "count_tokens", "messages"]
