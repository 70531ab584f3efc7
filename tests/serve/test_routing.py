"""Where requests go: the rule alone."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gristmill.serve.routing import BLOCK_CHARACTERS, MAX_BLOCKS, PrefixAffinity, prefix_of

REPLICAS = ["a", "b", "c"]


def block(*parts: int) -> tuple[bytes, ...]:
    """A chain: what follows other blocks is another block."""
    return tuple(str(parts[: i + 1]).encode() for i in range(len(parts)))


def turn(*contents: str, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": each} for i, each in enumerate(contents)]
    return {"model": "tiny", "messages": messages, **fields}


def shared(first: tuple[bytes, ...], second: tuple[bytes, ...]) -> int:
    pairs = list(zip(first, second, strict=False))
    return next((n for n, (x, y) in enumerate(pairs) if x != y), len(pairs))


def test_the_longest_known_prefix_wins() -> None:
    rule = PrefixAffinity()
    for request, replica, prefix in (
        ("1", "a", block(1, 2)),
        ("2", "b", block(1, 2, 3)),
        ("3", "c", block(9)),
    ):
        rule.begin(request, replica, prefix)
        rule.end(request)
    assert rule.order(block(1, 2, 3, 4), REPLICAS) == ["b", "a", "c"]
    assert rule.order(block(1, 2, 7), REPLICAS)[-1] == "c"
    assert rule.order(block(9, 9), REPLICAS)[0] == "c"


def test_a_later_block_alone_is_no_prefix() -> None:
    rule = PrefixAffinity()
    rule.begin("1", "a", (b"x", b"y"))
    rule.begin("2", "b", (b"z",))
    rule.end("1")
    rule.end("2")
    assert rule.order((b"z", b"y"), ["a", "b"])[0] == "b"


def test_a_replica_that_is_too_far_ahead_is_passed_by() -> None:
    rule = PrefixAffinity(max_ahead=2)
    went = []
    for i in range(12):  # all of one conversation, and none ends
        went.append(rule.order(block(1, 2), REPLICAS)[0])
        rule.begin(str(i), went[-1], block(1, 2))
        loads = [rule.load(each) for each in REPLICAS]
        assert max(loads) - min(loads) <= 3
    assert went[:3] == ["a", "a", "a"] and set(went) == set(REPLICAS)


def test_new_conversations_spread_evenly() -> None:
    together, one_by_one = PrefixAffinity(), PrefixAffinity()
    for i in range(30):
        for rule in (together, one_by_one):
            rule.begin(str(i), rule.order(block(i, i), REPLICAS)[0], block(i, i))
        one_by_one.end(str(i))
    assert [together.load(each) for each in REPLICAS] == [10, 10, 10]
    homes = [one_by_one.order(block(i, i), REPLICAS)[0] for i in range(30)]
    assert [homes.count(each) for each in REPLICAS] == [10, 10, 10]


def test_what_was_asked_before_decides_and_nothing_else() -> None:
    def routed(replicas: list[str]) -> list[str]:
        rule, went = PrefixAffinity(), []
        for i in range(60):
            prefix = block(i % 7, i % 3)
            went.append(rule.order(prefix, replicas)[0])
            rule.begin(str(i), went[-1], prefix)
            if i % 2:
                rule.end(str(i - 1))
        return went

    assert routed(REPLICAS) == routed(REPLICAS[::-1])


def test_a_dead_replica_is_forgotten() -> None:
    rule = PrefixAffinity()
    rule.begin("1", "a", block(1, 2, 3))
    rule.keep(["b", "c"])
    assert rule.load("a") == 0
    rule.begin("2", "b", block(1))
    rule.end("2")
    assert rule.order(block(1, 2, 3), REPLICAS)[0] == "b"


def test_a_request_that_moves_counts_once() -> None:
    rule = PrefixAffinity()
    rule.begin("1", "a", ())
    rule.begin("1", "b", ())
    assert (rule.load("a"), rule.load("b")) == (0, 1)
    rule.end("1")
    rule.end("1")
    assert rule.load("b") == 0


def test_little_is_remembered_and_the_shared_part_longest() -> None:
    rule = PrefixAffinity(max_known=4)
    rule.begin("1", "a", block(1, 2, 3))
    rule.begin("2", "a", block(1, 5, 6))
    rule.begin("3", "b", ())
    for request in "123":
        rule.end(request)
    rule.begin("4", "b", block(1))
    rule.end("4")
    assert rule.order(block(1, 5, 6), ["a", "b"])[0] == "a"
    assert rule.order(block(1), ["a", "b"]) == ["b", "a"]  # both know it; b has read less


TEXT = "Why is the sky blue at noon and red in the evening? Explain it at length. "


def test_turns_of_a_conversation_share_all_of_the_turns_before() -> None:
    first = prefix_of(turn(TEXT))
    second = prefix_of(turn(TEXT, "Because of scattering. " * 9, "And on Mars?"))
    assert len(first) == (len("user\0" + TEXT)) // BLOCK_CHARACTERS > 1
    assert shared(first, second) == len(first) < len(second)


def test_other_prompts_models_systems_and_tools_are_told_apart() -> None:
    first = prefix_of(turn(TEXT))
    for other in (
        turn("Once upon a time " * 9),
        turn(TEXT, model="big"),
        turn(TEXT, system="Be brief. " * 9),
        turn(TEXT, tools=[{"type": "function", "function": {"name": "look", "parameters": {}}}]),
    ):
        assert shared(first, prefix_of(other)) == 0


def test_sampling_and_streaming_are_no_part_of_it() -> None:
    assert prefix_of(turn(TEXT)) == prefix_of(turn(TEXT, temperature=0.3, stream=True, seed=5))


def test_prompts_of_all_kinds() -> None:
    for prompt in (TEXT, [TEXT, "other"], list(range(100)), [list(range(100))]):
        assert prefix_of({"model": "tiny", "prompt": prompt})
    assert prefix_of({"model": "tiny", "input": TEXT})
    parts = [{"type": "text", "text": TEXT}]
    assert prefix_of({"messages": [{"role": "user", "content": parts}]})
    assert prefix_of({}) == prefix_of({"model": "tiny"}) == prefix_of({"prompt": "short"}) == ()


def test_a_long_prompt_is_read_in_part() -> None:
    long = prefix_of({"prompt": "x" * 10_000_000})
    assert len(long) == MAX_BLOCKS and long == prefix_of({"prompt": "x" * 9_000_000})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.sampled_from(["model", "tools", "messages", "input", "prompt"]), JSON))
def test_any_body_has_a_prefix(body: dict[str, Any]) -> None:
    assert prefix_of(body) == prefix_of(dict(reversed(body.items())))


def test_a_deep_body_is_no_trouble() -> None:
    deep: Any = TEXT
    for _ in range(100_000):
        deep = [deep]
    assert len(prefix_of({"messages": deep})) == len(TEXT) // BLOCK_CHARACTERS
