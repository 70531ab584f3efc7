"""Calls that a grammar forces: a model of random weights makes them right, as `jsonschema` and the parser see it."""

from __future__ import annotations

import json

import jsonschema
import pytest

from gristmill.engine.grammar import compile_grammar
from gristmill.errors import RequestError
from gristmill.lm import Grammar, Request, SamplingParams
from gristmill.serve.parsing import Named, Tool, detect
from tests.serve.parsing.kinds import KINDS, TELLS, Kind, fold, seen

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"$ref": "#/$defs/days"},
        "unit": {"enum": ["°C", "°F", None]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 14}},
}
SEARCH = {
    "properties": {"terms": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
    "additionalProperties": False,
}
TOOLS = [Tool("weather", "", WEATHER, strict=True), Tool("search", "", SEARCH), Tool("now")]
SCHEMAS = {"weather": WEATHER, "search": SEARCH, "now": {"type": "object", "maxProperties": 0}}


def answers(kind: Kind, grammar: Grammar | None, count: int, in_reasoning=False, **params):
    """`count` answers of the random model, as (text, message, finish reason)."""
    requests = [
        Request(
            "def",
            SamplingParams(
                max_tokens=160,
                seed=seed,
                grammar=grammar,
                skip_special_tokens=not kind.format.needs_special,
                **params,
            ),
        )
        for seed in range(count)
    ]
    for out in kind.engine.generate(requests):
        message, _ = fold(kind.format.parser(TOOLS, in_reasoning), [out.text])
        yield out.text, message, out.finish_reason


def valid(calls) -> None:
    for call in calls:
        if call.complete:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


@pytest.mark.parametrize("name", KINDS)
def test_a_required_call_always_comes_and_is_valid(name):
    kind, names = KINDS[name], set()
    grammar = kind.format.grammar(TOOLS, "required", parallel=False)
    for text, message, reason in answers(kind, grammar, 100):
        assert reason == "stop"
        (call,) = message.tool_calls
        assert call.complete and message.content == "", text
        assert call.arguments in text
        valid([call])
        names.add(call.name)
    assert names == SCHEMAS.keys(), "each of them may be called"


@pytest.mark.parametrize("name", KINDS)
def test_several_calls_or_the_one_that_was_named(name):
    kind, most = KINDS[name], 0
    grammar = kind.format.grammar(TOOLS, Named("weather"), parallel=True)
    for text, message, reason in answers(kind, grammar, 20):
        assert message.content == "" or reason == "length", text
        assert {call.name for call in message.tool_calls} <= {"weather"}
        assert all(call.complete for call in message.tool_calls[:-1])
        assert message.tool_calls and (reason == "length" or message.tool_calls[-1].complete)
        valid(message.tool_calls)
        most = max(most, len(message.tool_calls))
    assert most > 1


@pytest.mark.parametrize("name", KINDS)
def test_strict_tools_leave_text_free_and_a_call_that_began_is_one(name):
    """The marks are made likely, so that many answers have calls."""
    kind = KINDS[name]
    grammar = kind.format.grammar(TOOLS, "auto", parallel=True)
    first = kind.written([("weather", "{}")])
    marks = [id for text, id in kind.tokenizer.special_tokens.items() if first.startswith(text)]
    bias = {marks[0]: 12.0} if marks else {kind.ids(first)[0]: 12.0}
    called = spoke = 0
    for text, message, _ in answers(kind, grammar, 40, logit_bias=bias):
        called += any(call.complete for call in message.tool_calls)
        spoke += bool(message.content)
        assert all(call.complete for call in message.tool_calls[:-1]), text
        valid(call for call in message.tool_calls if call.name == "weather")
    assert spoke or kind.bare, "which the bias makes begin with a bracket"
    assert called or kind.marks == "" or "tag" in name


def accepts(kind: Kind, grammar: Grammar | None, text: str) -> bool:
    """Whether it is a whole answer."""
    assert grammar is not None
    matcher, ids = compile_grammar(grammar, kind.tokenizer).matcher(), kind.ids(text)
    if matcher.validate(ids) < len(ids):
        return False
    for id in ids:
        matcher.consume(id)
    row = matcher._matcher
    return row.is_accepting()


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("mistral", "llama3, tag")])
def test_what_the_grammars_let_pass(name):
    kind = KINDS[name]
    good, other = ("weather", '{"city": "Rom", "days": 3}'), ("search", '{"terms": ["a"]}')
    bad, undeclared = ("weather", '{"city": "Rom", "days": 99}'), ("nobody", "{}")
    free = ("search", '{"anything": {"at": "all"}}')  # not strict

    def passes(choice, parallel, *calls, before="", after="") -> bool:
        grammar = kind.format.grammar(TOOLS, choice, parallel)
        return accepts(kind, grammar, before + kind.written(calls) + after)

    for choice in ("required", Named("weather"), "auto"):
        assert passes(choice, False, good) and passes(choice, True, good)
        assert passes(choice, True, good, good)
        assert not passes(choice, False, good, good)
        assert not passes(choice, True, bad) and not passes(choice, True, good, bad)
        assert not passes(choice, True, undeclared)
        assert passes(choice, True, good, other) == (choice != Named("weather"))
        text = accepts(kind, kind.format.grammar(TOOLS, choice), "Hello <b>, [1]")
        assert text == (choice == "auto")
        if not kind.bare:
            assert passes(choice, True, good, before="Well. ") == (choice == "auto")
    assert passes("auto", True, free) and not passes("required", True, free)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("mistral", "llama3, tag")])
def test_one_call_at_most_binds_tools_that_are_not_strict(name):
    kind, call = KINDS[name], ("search", '{"anything": {"at": "all"}}')
    grammar = kind.format.grammar(TOOLS[1:], "auto", parallel=False)
    assert accepts(kind, grammar, "Hello <b>, [1]")
    assert accepts(kind, grammar, kind.written([call]))
    assert not accepts(kind, grammar, kind.written([call, call]))


def test_no_grammar_where_nothing_is_to_be_forced():
    format = KINDS["hermes"].format
    lax = [Tool("search", "", SEARCH)]
    assert format.grammar(lax, "auto") is None
    assert format.grammar(TOOLS, "none") is None
    assert format.grammar([], "required") is None
    assert format.grammar(lax, Named("nobody")) is None


def test_schemas_that_cannot_be_enforced():
    """A strict tool's is refused, naming the key; another's arguments are any object."""
    kind = KINDS["hermes"]
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    lax = kind.format.grammar([Tool("f", "", schema)], "required")
    assert accepts(kind, lax, kind.written([("f", '{"a": 1}')]))
    strict = kind.format.grammar([Tool("f", "", schema, strict=True)], "required")
    assert strict is not None
    with pytest.raises(RequestError, match="uniqueItems"):
        compile_grammar(strict, kind.tokenizer)
    with pytest.raises(RequestError, match="parameters of the tool 'f'"):
        kind.format.grammar([Tool("f", "", {"type": "array"})], "required")


# Thoughts before an answer that has a form

FORMS = {
    "json_object": (Grammar("json_object"), '{"a": 1}', "x"),
    "json_schema": (Grammar("json_schema", WEATHER), '{"city": "", "days": 1}', '{"city": ""}'),
    "regex": (Grammar("regex", "a/b\\/c\n[x/]+"), "a/b/c\nx/", "a/b"),
    "choice": (Grammar("choice", ('é "🙂"', "b\nc")), "b\nc", "b"),
    "lark": (Grammar("lark", 'start: "a" end\nend: %json {"type": "null"} | "}" start'), "a}anull", "a"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_thought_may_end_before_an_answer_with_a_form(form):
    grammar, right, wrong = FORMS[form]
    for name in ("hermes", "mistral, named", "deepseek"):
        kind = KINDS[name]
        tags = kind.format.thought
        assert tags is not None
        opened = kind.format.with_reasoning(grammar, True)
        free = kind.format.with_reasoning(grammar, False)
        for pause in ("", "\n", "\n\n"):
            ended = f"Why? {{ é 🙂\n{tags.close}{pause}"
            assert accepts(kind, opened, ended + right)
            assert not accepts(kind, opened, ended + wrong)
            assert not accepts(kind, free, ended + right)
            assert accepts(kind, free, tags.open + ended + right)
        assert accepts(kind, free, right) and not accepts(kind, free, wrong)
        assert not accepts(kind, opened, right)
    plain = KINDS["json"]
    assert plain.format.with_reasoning(grammar, True) is grammar, "it does not think"


@pytest.mark.parametrize("name", ["hermes", "mistral, named", "deepseek"])
def test_a_thinking_model_thinks_first_and_then_calls(name):
    kind, thought = KINDS[name], 0
    tags = kind.format.thought
    assert tags is not None
    grammar = kind.format.grammar(TOOLS, "required", parallel=False)
    assert grammar is not None
    ends = kind.tokenizer.special_tokens.get(tags.close)
    bias = {} if ends is None else {ends: 6.0}
    ended = 0
    opened = kind.format.with_reasoning(grammar, True)
    for text, message, reason in answers(kind, opened, 16, in_reasoning=True, logit_bias=bias):
        thought += bool(message.reasoning)
        if reason == "stop":
            assert [call.complete for call in message.tool_calls] == [True], text
            assert message.content == ""
            valid(message.tool_calls)
            ended += 1
        elif not message.tool_calls:
            assert message.reasoning or message.content
    assert thought
    assert ended or ends is None, "a random model does not spell the tag"


@pytest.mark.parametrize("name", ["hermes", "mistral, named", "deepseek"])
@pytest.mark.parametrize("opened", [True, False])
def test_calls_and_text_after_a_thought(name, opened):
    kind = KINDS[name]
    tags = kind.format.thought
    assert tags is not None
    call = kind.written([("weather", '{"city": "Rom", "days": 3}')])
    bad = kind.written([("weather", '{"city": "Rom", "days": 99}')])
    thought = f"{'' if opened else tags.open}Why? <t {tags.close}\n\n"
    for choice in ("required", "auto"):
        grammar = kind.format.grammar(TOOLS, choice)
        assert grammar is not None
        after = kind.format.with_reasoning(grammar, opened)
        for before in (thought, "") if not opened else (thought,):
            assert accepts(kind, after, before + call)
            assert not accepts(kind, after, before + bad)
            assert accepts(kind, after, before + "Hello") == (choice == "auto")
            assert accepts(kind, after, before + "Hello " + call) == (choice == "auto")
        if opened:
            assert not accepts(kind, after, call), "the thought must end first"


def test_json_comes_on_one_line():
    """As with a plain json_schema: the blanks that JSON would allow are what weak models fill answers with."""
    kind = KINDS["hermes"]
    schema = Grammar("json_schema", WEATHER)
    for grammar in (schema, kind.format.with_reasoning(schema, True)):
        thought = "" if grammar is schema else "</think>"
        assert accepts(kind, grammar, thought + '{"city": "Rom", "days": 3}')
        assert accepts(kind, grammar, thought + '{"city":"Rom","days":3}')
        assert not accepts(kind, grammar, thought + '{\n"city": "Rom", "days": 3}')
        assert not accepts(kind, grammar, thought + '{"city":   "Rom", "days": 3}')


def test_the_first_list_of_mistral_has_a_space_where_its_template_has():
    spaced, tight = (detect(TELLS + mark, {}) for mark in ("[TOOL_CALLS] [", "[TOOL_CALLS][{"))
    written = '{"name": "now", "arguments": {}}'
    for format, space in ((spaced, " "), (tight, "")):
        grammar = format.grammar(TOOLS, "required")
        assert accepts(KINDS["json"], grammar, f"[TOOL_CALLS]{space}[{written}, {written}]")
    assert seen(fold(tight.parser(TOOLS), [f"[TOOL_CALLS] [{written}]"])[0])[2]
