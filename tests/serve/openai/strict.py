"""What OpenAI's SDK declares, taken at its word: the SDK itself lets anything pass."""

from __future__ import annotations

from typing import Any

from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.declared import declared

# OpenAI's own server tells store; the bytes of a token are true where its text cannot be.
OURS = {"seed", "store", "bytes"}
_RESPONSE, _ITEMS = TypeAdapter(Response), TypeAdapter(ResponseItemList)
_EVENT = TypeAdapter(ResponseStreamEvent)


def response(document: dict[str, Any]) -> Response:
    return declared(_RESPONSE.validate_python(document, strict=True), OURS)


def items(document: dict[str, Any]) -> ResponseItemList:
    return declared(_ITEMS.validate_python(document, strict=True), OURS)


def event(document: dict[str, Any]) -> Any:
    return declared(_EVENT.validate_python(document, strict=True), OURS)


def without_ids(document: Any) -> Any:
    """What two responses to one request have in common: all but ids, times, and what the cache held."""
    if isinstance(document, list):
        return [without_ids(each) for each in document]
    if not isinstance(document, dict):
        return document
    differing = {"id", "call_id", "item_id", "created_at", "completed_at", "cached_tokens"}
    return {name: without_ids(v) for name, v in document.items() if name not in differing}
