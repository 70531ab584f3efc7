"""What Anthropic's SDK declares, taken at its word: the SDK itself lets anything pass."""

from __future__ import annotations

import json
import math
from typing import Any

from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.declared import declared

_MESSAGE, _EVENT = TypeAdapter(Message), TypeAdapter(RawMessageStreamEvent)


def message(document: dict[str, Any]) -> Message:
    return declared(_MESSAGE.validate_python(document, strict=True))


def events(stream: str) -> list[dict[str, Any]]:
    """Those of a stream's text, without pings. Each is of a type that the SDK declares, has no field that it does not
    declare, and the name that its data has."""
    found = []
    for part in stream.split("\n\n")[:-1]:
        name, data = part.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        if document["type"] != "ping":
            declared(_EVENT.validate_python(document, strict=True))
            found.append(document)
    return found


def in_order(found: list[dict[str, Any]]) -> None:
    """One message, its blocks one after another, each with deltas of its own kind."""
    deltas = {
        "text": ("text_delta",),
        "thinking": ("thinking_delta", "signature_delta"),
        "tool_use": ("input_json_delta",),
    }
    types = [event["type"] for event in found]
    assert types[0] == "message_start" and types[-2:] == ["message_delta", "message_stop"]
    count, block = 0, None
    for event in found[1:-2]:
        assert event["index"] == count
        if event["type"] == "content_block_start":
            assert block is None
            block = event["content_block"]
            assert not (block.get("text") or block.get("thinking") or block.get("input"))
            last = ""
        elif event["type"] == "content_block_delta":
            assert block is not None and last != "signature_delta"
            last = event["delta"]["type"]
            assert last in deltas[block["type"]]
        else:
            assert event["type"] == "content_block_stop" and block is not None
            assert block["type"] != "thinking" or last == "signature_delta"
            count, block = count + 1, None
    assert block is None


def without_ids(document: Any) -> Any:
    """What two answers to one request have in common: all but ids, and what the cache held. JSON has no infinity, into
    which the SDK makes numbers that are too large."""
    if isinstance(document, list):
        return [without_ids(each) for each in document]
    if not isinstance(document, dict):
        infinite = isinstance(document, float) and math.isinf(document)
        return None if infinite else document
    differing = {"id", "input_tokens", "cache_read_input_tokens"}
    return {name: without_ids(v) for name, v in document.items() if name not in differing}
