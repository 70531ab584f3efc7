"""Chat exports: real OASST trees, each export's form, JSON in any layout, and logs."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gristmill.data.sources import json_records as records
from gristmill.data.sources.chats import conversation_turns, read_chats

OASST = Path("../shared/data/sft/oasst-en-100-trees.jsonl")


@pytest.mark.skipif(not OASST.is_file(), reason="no ../shared/data")
def test_oasst_trees() -> None:
    found = list(read_chats(OASST))
    trees = [json.loads(line) for line in OASST.read_text("utf-8").splitlines()]
    assert len(found) == len(trees) == 100 and not any(raw.reason for raw in found)
    for raw, tree in zip(found, trees, strict=True):
        assert raw.text.startswith("user: " + tree["prompt"]["text"].strip())
        ranked = [reply for reply in tree["prompt"]["replies"] if reply.get("rank") == 0]
        assert all("assistant: " + reply["text"].strip() in raw.text for reply in ranked)
        worse = [
            reply["text"].strip()
            for reply in tree["prompt"]["replies"]
            if (reply.get("rank") or 0) > 0
        ]
        assert not any(f"assistant: {text}\n\n" in raw.text for text in worse if ranked)


PAIR = [("user", "q"), ("assistant", "a")]
FORMS = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"chat_messages": [{"sender": "human", "text": "q"}, {"sender": "assistant", "content": [{"text": "a"}]}]},
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    {"instruction": "q", "output": "a"},
    {"prompt": "q", "response": "a"},
    {"prompt": {"text": "q", "role": "prompter", "replies": [
        {"text": "worse", "role": "assistant", "rank": 1}, {"text": "a", "role": "assistant", "rank": 0},
        {"text": "gone", "role": "assistant", "rank": -1, "deleted": True}, {"text": "unranked", "role": "assistant"},
    ]}},
    {"current_node": "c", "mapping": {
        "r": {"message": None, "parent": None, "children": ["b"]},
        "b": {"message": {"author": {"role": "user"}, "content": {"parts": ["q"]}}, "parent": "r", "children": ["d"]},
        "c": {"message": {"author": {"role": "assistant"}, "content": {"parts": ["a"]}}, "parent": "b", "children": []},
        "d": {"message": {"author": {"role": "assistant"}, "content": {"parts": ["x"]}}, "parent": "b", "children": []},
    }},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_each_form(form: object) -> None:
    assert conversation_turns(form) == PAIR


def test_a_mapping_that_goes_round_ends() -> None:
    node = {"message": {"author": {"role": "user"}, "content": {"parts": ["q"]}}}
    assert conversation_turns(
        {"current_node": "a", "mapping": {"a": node | {"parent": "b"}, "b": node | {"parent": "a"}}}
    )


_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                "mapping prompt text replies messages role content from value parts author rank parent".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@settings(max_examples=300, deadline=None)
@given(_JSON)
def test_any_json_is_chat_or_not(record: object) -> None:
    assert all(isinstance(text, str) for turn in conversation_turns(record) for text in turn)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), _JSON, max_size=3), min_size=1, max_size=6),
    st.integers(1, 40),
)
def test_records_are_those_that_json_wrote(tmp_path: Path, values: list, chunk: int) -> None:
    from gristmill.data.sources.opening import opened

    layouts = ["\n".join(map(json.dumps, values)), json.dumps(values), json.dumps(values, indent=1)]
    layouts += [
        json.dumps(values, ensure_ascii=False),
        "\n".join(json.dumps(value, indent=2) for value in values),
    ]
    before, records._CHUNK = records._CHUNK, chunk
    try:
        for layout in layouts:
            (tmp_path / "f").write_text(layout, "utf-8", errors="replace")
            with opened(tmp_path / "f") as stream:
                assert [value for _, value in records.json_records(stream, 10_000)] == values
    finally:
        records._CHUNK = before


def test_damage(tmp_path: Path) -> None:
    good = json.dumps(FORMS[0])
    for name, text, reasons in (
        ("lines", f"{good}\n{{bad\n{good}\n" + '{"a":', ["", "bad_record", "", "bad_record"]),
        ("array", f"[{good}, {{bad}}, {good}]", ["", "bad_record"]),
        ("other", '{"x": 1}', ["no_turns"]),
        ("empty", "", ["no_turns"]),
        ("prose", "Just words.\n" * 5, ["no_turns"]),
    ):
        (tmp_path / name).write_text(text)
        assert [raw.reason for raw in read_chats(tmp_path / name)] == reasons, name
    (tmp_path / "deep").write_text("[" + "[" * 200_000)
    assert [raw.reason for raw in read_chats(tmp_path / "deep")] == ["bad_record"]
    assert [raw.reason for raw in read_chats(tmp_path / "absent")] == ["unreadable"]


LOGS = {
    "[31.12.20, 21:41:05] Anna: Hi\ntwo\n[31.12.20, 21:42:05] Bob: Yes: ok\n[01.01.21, 00:00:01] Bob: New\n": [
        "Anna: Hi\ntwo\n\nBob: Yes: ok\n",
        "Bob: New\n",
    ],
    "12/31/20, 9:41 PM - Messages are safe\n12/31/20, 9:41 PM - Anna: Hi\n12/31/20, 9:42 PM - Bob: <Media omitted>\n": [
        "Anna: Hi\n"
    ],
    "--- Log opened\n[12:30] <anna> hello\n12:31 -!- bob joined\n[12:32] <@bob> hi\n": [
        "anna: hello\n\nbob: hi\n"
    ],
    "2020-01-01 12:34:56 <a> x\n2020-01-02 00:00:01 <b> y\n": ["a: x\n", "b: y\n"],
}


@pytest.mark.parametrize(
    "log", LOGS, ids=["whatsapp-ios", "whatsapp-android", "irssi", "irc-dates"]
)
def test_logs(tmp_path: Path, log: str) -> None:
    (tmp_path / "log").write_text(log, "utf-8")
    assert [raw.text for raw in read_chats(tmp_path / "log")] == LOGS[log]


def test_a_long_log_is_cut(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"[12:30] <a> {number}\n" for number in range(1_200)))
    assert [raw.detail["turns"] for raw in read_chats(tmp_path / "log")] == [500, 500, 200]
