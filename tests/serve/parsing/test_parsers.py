"""Answers read in pieces: however the text is cut, the events tell the same, and nothing of it is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.serve.parsing import Reasoning, Text, ToolArguments, ToolEnd, ToolStart
from tests.serve.parsing.kinds import KINDS, TOOLS, fold, seen

NAMES = [tool.name for tool in TOOLS]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["</tool_call>", '"', "\\", "{", "[TOOL_CALLS]", "<think>", "```", "é\u2028🙂"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
arguments = st.builds(
    lambda value, ascii, indent: json.dumps(value, ensure_ascii=ascii, indent=indent),
    st.dictionaries(st.text(max_size=6), values, max_size=3),
    st.booleans(),
    st.sampled_from([None, 1]),
)
calls = st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=3)
words = st.text("ab é🙂\n.<[{`", max_size=12).map(lambda text: "." + text + ".")
JUNK = [
    "<tool_call>", "</tool_call>", "<tool", "_call>", "</", "<", ">", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[TOOL",
    "<|python_tag|>", "<|py", "<think>", "</think>", "<thi", "\n", " ", ";", ",", ":", "{", "}", "[", "]", '"', "\\",
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
    "<｜tool▁",
    "function", "```json", "```", '"name": "get"', '"name": ', '"get"', '"nobody"',
    '"arguments": {', '"parameters": {}',
    '{"name": "get", "arguments": {', '{"name": "get", "parameters": {"a": 1}}', '"a"', "1", "-", "1e5", "true", "nul",
    "NaN", "get", "nobody", "text", "é🙂", '"\\u00e9"', '"\\x"', '"id": 3, ',
]  # fmt: skip
junk = st.lists(st.sampled_from(JUNK), max_size=14).map("".join)
cuts = st.lists(st.floats(0, 1), max_size=12)


def cut(text: str, places: list[float]) -> list[str]:
    ends = sorted(round(place * len(text)) for place in places)
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


def check(kind: str, text: str, places: list[float], in_reasoning: bool = False):
    """Whole, cut, and one character at a time; the message of it."""
    format = KINDS[kind].format
    whole, events = fold(format.parser(TOOLS, in_reasoning), [text])
    for pieces in (cut(text, places), list(text)):
        message, in_pieces = fold(format.parser(TOOLS, in_reasoning), pieces)
        assert seen(message) == seen(whole), pieces
        sound(in_pieces)
    sound(events)
    return whole


def sound(events) -> None:
    """Each call is told in its order, its arguments between start and end; complete ones are JSON of an object."""
    names, written, ended, ids = [], [], set(), set()
    for event in events:
        match event:
            case ToolStart(index, id, name):
                assert index == len(names) and name in NAMES and id not in ids and len(id) == 9
                names.append(name)
                written.append("")
                ids.add(id)
            case ToolArguments(index, text):
                assert index == len(names) - 1 and index not in ended and text
                written[index] += text
            case ToolEnd(index):
                assert index == len(names) - 1 and index not in ended
                ended.add(index)
            case Text(text) | Reasoning(text):
                assert text
    for index in ended:
        assert isinstance(json.loads(written[index]), dict)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None)
@given(text=junk, places=cuts, data=st.data())
def test_any_text_in_any_pieces(kind, text, places, data):
    thinks = KINDS[kind].format.thought is not None
    message = check(kind, text, places, thinks and data.draw(st.booleans()))
    if not message.tool_calls and not thinks:
        assert message.content == text, "what is no call is content, to the last blank"
    told = message.reasoning + message.content + "".join(c.arguments for c in message.tool_calls)
    assert all(told.count(letter) <= text.count(letter) for letter in set(told) - set("{}"))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(said=calls, before=words, after=words, places=cuts, thought=words)
def test_calls_come_out_as_they_were_written(kind, said, before, after, places, thought):
    made = KINDS[kind]
    text = made.written(said)
    expected = [(name, written, True) for name, written in said]
    assert seen(check(kind, text, places)) == ("", "", expected)
    if not made.bare:
        found = seen(check(kind, f"{before}\n{text}\n{after}", places))
        assert found == (f"{before}\n\n{after}", "", expected)
        assert seen(check(kind, f"{before}\n\n{text}\n", places)) == (before, "", expected)
    if made.format.thought is not None:
        tags = made.format.thought
        told = f"\n{thought}\n{tags.close}\n\n{text}"
        assert seen(check(kind, told, places, in_reasoning=True)) == ("", thought, expected)
        told = f"{tags.open}{told}"
        assert seen(check(kind, told, places)) == ("", thought, expected)
        assert seen(check(kind, told, places, in_reasoning=True)) == ("", thought, expected)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(said=calls, place=st.floats(0, 1), places=cuts)
def test_an_answer_that_was_cut_off_keeps_what_there_was(kind, said, place, places):
    """As max_tokens does: the calls before it are whole, the last one has the beginning of its arguments."""
    whole = KINDS[kind].written(said)
    text = whole[: round(place * len(whole))]
    content, _, found = seen(check(kind, text, places))
    for at, (name, written, complete) in enumerate(found):
        assert name == said[at][0] and said[at][1].startswith(written)
        assert complete == (written == said[at][1])
        assert complete or at == len(found) - 1
    if not found:
        assert content == text
    elif content:
        assert text.endswith(content), "of a further call that had not begun to be one"


pieces_of_json = st.lists(
    st.sampled_from(
        ["{", "}", "[", "]", ":", ",", '"a"', '"', "\\", "0", "01", "-1", "-", ".5", "1.", "1.5", "1e5", "1e", "true",
         "nul", "null", "NaN", "-Infinity", '"\\u00e9"', '"\\u12"', '"\\x"', '"\\n"', '"\n"', "\x00", " ", "\n"]
    ),
    max_size=6,
).map("".join)  # fmt: skip


def refuse(name: str):
    raise ValueError(f"{name} is none of JSON's")


@settings(max_examples=400, deadline=None)
@given(value=values.map(json.dumps) | pieces_of_json, more=pieces_of_json, places=cuts)
def test_calls_are_complete_exactly_where_json_takes_their_arguments(value, more, places):
    written = f'{{"v":{value}{more}}}'
    message = check("mistral, named", f"[TOOL_CALLS]get[ARGS]{written}", places)
    (call,) = message.tool_calls
    try:
        _, end = json.JSONDecoder(parse_constant=refuse).raw_decode(written)
    except ValueError:
        assert not call.complete and call.arguments == written
    else:
        assert call.complete and call.arguments == written[:end]


WRONG = [
    "01",
    "1.",
    ".5",
    "-",
    "-01",
    "1e",
    "1e+",
    "1.e5",
    "1.5.2",
    "+1",
    "--1",
    "0x1",
    "NaN",
    "Infinity",
    "nulll",
]


@pytest.mark.parametrize("value", WRONG)
def test_what_json_has_no_word_for(value):
    with pytest.raises(ValueError):
        json.loads(value, parse_constant=refuse)
    message = check("mistral, named", f'[TOOL_CALLS]get[ARGS]{{"v": [{value}]}}', [0.9])
    assert [call.complete for call in message.tool_calls] == [False]


CASES = [
    # what is no call is content
    ("hermes", '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>', None, []),
    ("hermes", "<tool_call>not JSON</tool_call> and <tool_call", None, []),
    ("hermes", '<tool_call>{"name": "get", "arguments": "x"}</tool_call>', None, []),
    ("hermes", '<tool_call>{"name": "get"', None, []),
    ("llama3", '{"city": "Paris", "name": "get", "parameters": {}}', None, []),
    ("llama3", '{"name": "get"}', None, []),
    ("llama3", 'Look: {"name": "get", "parameters": {}}', None, []),
    ("llama3", "<|python_tag|>print(1)", None, []),
    ("mistral", "[TOOL_CALLS][]", None, []),
    ("mistral, named", "[TOOL_CALLS]nobody[ARGS]{}", None, []),
    ("deepseek", "<｜tool▁calls▁begin｜>\nget", None, []),
    # a call after what looked like one
    ("hermes", '<tool_call> <tool_call>{"name": "get", "arguments": {}}', "<tool_call>", [("get", "{}", True)]),
    # what small models forget
    ("hermes", '<tool_call>{"name": "get"}</tool_call>', "", [("get", "{}", True)]),
    ("hermes", '<tool_call>{"name": "get", "arguments": {"a": 1}</tool_call>', "", [("get", '{"a": 1}', True)]),
    ("mistral", '[TOOL_CALLS][{"name": "get", "arguments": {}}', "", [("get", "{}", True)]),
    # blanks beside calls, where no text stands on both sides
    ("hermes", '\n <tool_call>{"name": "get"}</tool_call>\n ok\n', "ok\n", [("get", "{}", True)]),
    # JSON that breaks once the call has begun
    ("hermes", '<tool_call>{"name": "get", "arguments": {"a": 1,}}</tool_call>ok', "ok",
     [("get", '{"a": 1,}}', False)]),
    ("mistral, named", "[TOOL_CALLS]get[ARGS]{'a': 1} ok", "", [("get", "{'a': 1} ok", False)]),
    ("mistral, named", '[TOOL_CALLS]get[CALL_ID]12[ARGS]{}[TOOL_CALLS]get{"a": 1}', "",
     [("get", "{}", True), ("get", '{"a": 1}', True)]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "content", "found"), CASES)
def test_edges(kind, text, content, found):
    message = check(kind, text, [0.3, 0.5])
    assert seen(message) == (text if content is None else content, "", found)


def test_thoughts():
    def read(text: str, in_reasoning: bool = False):
        content, reasoning, _ = seen(check("hermes", text, [0.2, 0.6, 0.9], in_reasoning))
        return reasoning, content

    assert read("<think>\nwhy\n</think>\n\nso") == ("why", "so")
    assert read("why\n\nnot</think>so", True) == ("why\n\nnot", "so")
    assert read("\n</think>\n\nso", True) == ("", "so")
    assert read("never closed\n", True) == ("never closed\n", "")
    assert read("<think>a </thin") == ("a </thin", "")
    assert read("so <think>a</think>") == ("", "so <think>a</think>")
    assert read("\n so") == ("", "\n so")
    assert read('<think>{"a": "<tool_call>"}</think>') == ('{"a": "<tool_call>"}', "")


def test_text_is_told_as_soon_as_it_is_certain():
    parser = KINDS["hermes"].format.parser(TOOLS)
    assert parser.feed("Hello <") == [Text("Hello")]
    assert parser.feed("b> <tool_") == [Text(" <b>")]
    assert parser.feed('call>{"name": "ge') == []
    assert parser.feed('t", "arguments": ') == []
    start, piece = parser.feed('{"city": "Pa')
    assert isinstance(start, ToolStart) and start.name == "get"
    assert piece == ToolArguments(0, '{"city": "Pa')
    assert parser.feed('ris"}}') == [ToolArguments(0, 'ris"}'), ToolEnd(0)]
    assert parser.feed("</tool_call>") == parser.finish() == []


def test_deep_brackets_and_endless_numbers_are_no_arguments():
    for wrong in ("[" * 5000 + "]" * 5000, "1" * 5000):
        message = check("mistral, named", f'[TOOL_CALLS]get[ARGS]{{"a": {wrong}}}', [])
        assert [call.complete for call in message.tool_calls] == [False]
