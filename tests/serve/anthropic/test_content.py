"""Blocks and events against the SDK's own accumulator, for answers cut anywhere: sound, broken and cut short."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gristmill.serve.anthropic.arguments import Arguments
from gristmill.serve.anthropic.events import Content
from gristmill.serve.parsing import Tool, detect
from tests.serve.anthropic import strict

FORMAT = detect("<think></think>{% if tools %}<tool_call>{{ tools }}{% endif %}", {})
TOOLS = [Tool("weather"), Tool("tides")]
START = {
    "type": "message_start",
    "message": {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "usage": {"input_tokens": 0, "output_tokens": 0},
    },
}
EVENT = TypeAdapter(RawMessageStreamEvent)


def call(arguments: str, name: str = "weather") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ARGUMENTS = [
    '{"city": "Oslo"}',
    "{}",
    '{"a": [1, -2.5e3, true, null, {"b": "\\u00e6 \\ud83d\\ude42 \\" \\n"}], "c": "🙂"}',
    '{"a": 1, "a": 2}',
]
BROKEN = [
    '{"a": 1.2.3}',
    '{"a": "\\ud83dx"}',
    '{"a": "\\ude42"}',
    '{"a": nope}',
    '{"a": "x" "b"}',
    '{"a": 1,}',
]
SAID = [
    "",
    "Hello.",
    "<think>\nWell…\n</think>\n\nHello, ünïcode 🙂.",
    *map(call, ARGUMENTS),
    *map(call, BROKEN),
    f"<think>\nA tool.\n</think>\n\nI look.\n{call(ARGUMENTS[0])}\n{call(ARGUMENTS[2], 'tides')}",
    f"{call(ARGUMENTS[0])} and then {call(BROKEN[0])} so {call('{}')} end",
    call("{}", "unknown"),
]


def taken(pieces: list[str]) -> tuple[list[dict[str, Any]], Any, Content]:
    """Their events, what the SDK makes of these, and the content."""
    parser, content, out = FORMAT.parser(TOOLS), Content(), []
    for events in [*map(parser.feed, pieces), parser.finish()]:
        for event in events:
            out += content.take(event)
    stream = b"".join([*out, *content.close()]).decode()
    found = strict.events(stream)
    strict.in_order([START, *found, {"type": "message_delta"}, {"type": "message_stop"}])
    snapshot, buffers = None, {}
    for event in [START, *found]:
        snapshot = accumulate_event(
            event=EVENT.validate_python(event), current_snapshot=snapshot, json_bufs=buffers
        )
    return found, snapshot, content


def shown(blocks: list[Any]) -> list[Any]:
    return strict.without_ids([block.to_dict(mode="python") for block in blocks])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_whole_is_what_the_sdk_makes_of_the_stream(data: st.DataObject) -> None:
    said = data.draw(st.sampled_from(SAID))
    said = said[: data.draw(st.integers(0, len(said)))] if data.draw(st.booleans()) else said
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=12)))
    pieces = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    _, snapshot, content = taken(pieces)
    whole = strict.without_ids(json.loads(content.whole()))
    assert shown(snapshot.content) == whole
    _, one, one_called = taken([said])
    assert whole == shown(one.content), "it does not matter where it was cut"
    assert content.called == one_called.called


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_a_sound_input_is_the_models_own_json(arguments: str) -> None:
    _, snapshot, content = taken(list(call(arguments)))
    assert content.called
    assert f'"input": {arguments}' in content.whole()
    assert snapshot.content[0].input == json.loads(arguments)


@pytest.mark.parametrize("arguments", BROKEN)
def test_a_broken_input_is_told_up_to_its_break_and_is_no_call(arguments: str) -> None:
    found, _, content = taken(list(call(arguments)))
    assert not content.called
    told = "".join(e["delta"]["partial_json"] for e in found if e["type"] == "content_block_delta")
    assert arguments.startswith(told) and len(told) >= 5


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text()
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
    ),
    st.booleans(),
)  # fmt: skip
def test_all_json_is_sound_at_every_cut(value: dict[str, Any], escaped: bool) -> None:
    text = json.dumps(value, ensure_ascii=escaped)
    arguments = Arguments()
    assert "".join(map(arguments.sound, text)) == text
    assert arguments.complete and arguments.input() == text
