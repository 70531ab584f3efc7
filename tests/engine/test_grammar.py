"""Text in a form: whatever the model would say, what comes out has it. Judged by `jsonschema` and `re`."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import jsonschema
import pytest
import torch

from gristmill.engine import Engine
from gristmill.engine.grammar import compile_grammar
from gristmill.engine.masks import token_masks
from gristmill.engine.sampler import History, sample
from gristmill.errors import RequestError
from gristmill.lm import Grammar, Request, SamplingParams
from gristmill.tokenizer import train_bpe
from tests.tiny_model import random_model

WORDS = ["id", "name", "ok", "count", "tags", "größe", 'a"b', "x y"]


def schema(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """A random schema of the keywords that people use."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern"]
    kind = chance.choice(kinds + (["object", "array", "anyOf", "tuple"] * 2 if depth < 3 else []))
    low = chance.randint(-50, 50)
    if kind == "object":
        names = chance.sample(WORDS, chance.randint(0, 3))
        return {
            "type": "object",
            "properties": {name: schema(chance, depth + 1) for name in names},
            "required": chance.sample(names, chance.randint(0, len(names))),
            "additionalProperties": False,
        }
    if kind == "array":
        least = chance.randint(0, 2)
        limits = {"minItems": least, "maxItems": least + chance.randint(0, 2)}
        return {"type": "array", "items": schema(chance, depth + 1), **limits}
    if kind == "tuple":
        items = [schema(chance, depth + 1) for _ in range(2)]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": 2}
    if kind == "anyOf":
        return {"anyOf": [schema(chance, depth + 1) for _ in range(2)]}
    if kind == "string":
        least = chance.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + chance.randint(0, 8)}
    if kind == "pattern":
        return {"type": "string", "pattern": chance.choice([r"^[a-c]{2,4}$", r"^\d{3}-x?$"])}
    if kind in ("integer", "number"):
        return {"type": kind, "minimum": low, "maximum": low + chance.randint(1, 300)}
    if kind == "enum":
        return {"enum": chance.sample(["red", 5, None, True, "größe", 2.5], 2)}
    if kind == "const":
        return {"const": chance.choice(["a b", 7, [1, "x"], {"k": False}])}
    return {"type": kind}


@cache
def tokenizer():
    return train_bpe(iter([json.dumps({w: [1, 2.5, True] for w in WORDS}) * 20, "größe 🙂"]), 512)


def written(grammar: Grammar, seed: int, most: int = 600) -> tuple[str, bool]:
    """What a model that knows nothing writes under the grammar, and whether it ended by itself."""
    matcher = compile_grammar(grammar, tokenizer()).matcher()
    params = SamplingParams(temperature=1.0)
    generator = torch.Generator().manual_seed(seed)
    output: list[int] = []
    while len(output) < most:
        if forced := matcher.forced():
            for token in forced:
                matcher.consume(token)
            output += forced
            if matcher.stopped:
                break
            continue
        logits = torch.randn(1, 512, generator=generator) * 2
        logits[0, list(tokenizer().stop_ids)] += 3.0
        masks = token_masks([(matcher, [], 0)], tokenizer().vocab_size)
        (token,), _ = sample(logits, [History(params, [], output, seed)], masks)
        if token in tokenizer().stop_ids:
            return tokenizer().decode(output), True
        output.append(token)
        matcher.consume(token)
        if matcher.stopped:
            break
    return tokenizer().decode(output), len(output) < most


@pytest.mark.parametrize("part", range(5))
def test_500_random_schemas(part):
    ended = 0
    for seed in range(100 * part, 100 * (part + 1)):
        wanted = schema(random.Random(seed))
        text, whole = written(Grammar("json_schema", wanted), seed)
        ended += whole
        if whole:
            jsonschema.validate(json.loads(text), wanted)
    assert ended >= 99, "a number of endless digits is no answer to most schemas"


@pytest.mark.parametrize(
    "pattern",
    [r"[A-Z]{2,3}-[0-9]+(\.[0-9]{2})?", r"(yes|no)( indeed)?!", r"[^x]{4}ü", r"[0-9]{4}-[0-9]{2}"],
)
def test_regular_expressions(pattern):
    for seed in range(20):
        text, whole = written(Grammar("regex", pattern), seed, most=200)
        assert not whole or re.fullmatch(pattern, text), text


def test_choices_and_lark():
    options = ("red", "green", "größe or not")
    texts = {written(Grammar("choice", options), seed)[0] for seed in range(40)}
    assert texts == set(options)
    sums = 'start: NUMBER (" + " NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/'
    for seed in range(20):
        text, whole = written(Grammar("lark", sums), seed)
        assert not whole or re.fullmatch(r"[1-9]\d{0,2}( \+ [1-9]\d{0,2})*", text)


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar("regex", "(unclosed"), "regex"),
        (Grammar("lark", "start: MISSING"), "(?i)missing"),
        (Grammar("json_schema", {"type": "nonsense"}), "json_schema"),
        (Grammar("json_schema", {"type": "array", "uniqueItems": True}), "uniqueItems"),
    ],
)
def test_what_is_wrong_or_would_not_be_enforced_is_refused(grammar, said):
    with pytest.raises(RequestError, match=said):
        compile_grammar(grammar, tokenizer())
    for kind, source in (("json_schema", "{}"), ("choice", ()), ("nothing", "")):
        with pytest.raises(RequestError, match="grammar"):
            Grammar(kind, source)


def test_validate_roll_back_and_copies():
    compiled = compile_grammar(Grammar("regex", "abc(def|xyz)"), tokenizer())
    one, other = compiled.matcher(), compiled.matcher()
    letters = [tokenizer().encode(c)[0] for c in "abcdef"]
    before = token_masks([(one, [], 0)], 512)
    assert one.validate(letters) == 6 and one.validate([*letters[:4], letters[0]]) == 4
    masks = token_masks([(one, letters[:3], 0), (None, [], 0)], 512)
    assert masks is not None and before is not None
    assert torch.equal(masks[:1], before) and bool((masks[4] == -1).all())
    for token in letters:
        one.consume(token)
    assert one.accepting and not other.accepting
    with pytest.raises(ValueError, match="grammar"):
        other.consume(letters[1])


@cache
def model():
    return random_model()


def answers(**kept) -> list[tuple[str, str, tuple[int, ...]]]:
    engine = Engine(model(), **kept)
    wanted = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "ok": {"type": "boolean"}},
        "required": ["name", "ok"],
        "additionalProperties": False,
    }
    grammars = [
        Grammar("json_schema", wanted),
        Grammar("choice", ("a rose", "a rosary")),
        Grammar("regex", r"[0-9]{3}-[a-z]{5}"),
        None,
    ]
    requests = [
        Request("x = ", SamplingParams(max_tokens=150, seed=i, grammar=grammar, temperature=t))
        for i, grammar in enumerate(grammars)
        for t in (0.0, 1.0)
    ]
    found = engine.generate(requests)
    for completion in found[:2]:
        jsonschema.validate(json.loads(completion.text), wanted)
    assert {c.finish_reason for c in found[:6]} == {"stop"}
    assert all(c.text in ("a rose", "a rosary") for c in found[2:4])
    assert all(re.fullmatch(r"[0-9]{3}-[a-z]{5}", c.text) for c in found[4:6])
    return [(c.text, c.finish_reason, c.token_ids) for c in found]


def test_in_the_engine_with_batching_chunks_drafts_and_preemption():
    expected = answers(max_rows=1)
    assert answers() == expected
    assert answers(step_tokens=1) == expected
    assert answers(draft="ngram", adaptive_drafts=False) == expected
    assert answers(draft=model(), draft_tokens=3, adaptive_drafts=False) == expected
    assert answers(cache_tokens=176, max_rows=8) == expected


def test_forced_tokens_are_not_drawn_one_by_one():
    engine = Engine(model())
    text = "a long sentence that leaves no choice at all"
    params = SamplingParams(max_tokens=100, grammar=Grammar("choice", (text,)), logprobs=0)
    (out,) = engine.generate([Request("x", params)])
    assert out.text == text and out.logprobs is not None
    assert len(out.logprobs) == len(out.token_ids)
    assert engine.stats.steps < len(out.token_ids) / 2


def test_cut_by_max_tokens_says_length():
    params = SamplingParams(max_tokens=3, grammar=Grammar("regex", "[a-z]{40}"))
    (out,) = Engine(model()).generate([Request("x", params)])
    assert out.finish_reason == "length"
