"""Text in a form: whatever the model would say, what comes out has it. Judged by `jsonschema` and `re`."""

from __future__ import annotations

import gc
import json
import random
import re
import sys
from functools import cache
from typing import Any
from weakref import ref

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from gristmill.engine import Engine
from gristmill.engine.grammar import compile_grammar
from gristmill.engine.masks import token_masks
from gristmill.engine.sampler import History, sample
from gristmill.errors import RequestError, WorkError
from gristmill.lm import Grammar, Request, SamplingParams
from gristmill.tokenizer import Tokenizer, train_bpe
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


def value(chance: random.Random, of: dict[str, Any]) -> Any:
    """A random value of a schema of `schema`, its properties in the schema's order, as they must be written."""
    kind = of.get("type")
    if "anyOf" in of:
        return value(chance, chance.choice(of["anyOf"]))
    if "const" in of:
        return of["const"]
    if "enum" in of:
        return chance.choice(of["enum"])
    if kind == "object":
        names = [n for n in of["properties"] if n in of["required"] or chance.random() < 0.5]
        return {name: value(chance, of["properties"][name]) for name in names}
    if "prefixItems" in of:
        return [value(chance, item) for item in of["prefixItems"]]
    if kind == "array":
        return [
            value(chance, of["items"])
            for _ in range(chance.randint(of["minItems"], of["maxItems"]))
        ]
    if "pattern" in of:
        return "abca"[: chance.randint(2, 4)] if "a-c" in of["pattern"] else "042-x"
    if kind == "string":
        length = chance.randint(of["minLength"], of["maxLength"])
        return "".join(chance.choices('aZ 9é🙂"\\/\n\t{', k=length))
    if kind == "integer":
        return chance.randint(of["minimum"], of["maximum"])
    if kind == "number":
        return round(chance.uniform(of["minimum"], of["maximum"]), chance.randint(0, 9))
    return chance.random() < 0.5 if kind == "boolean" else None


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
        masks, _ = token_masks([(matcher, [], 0)], tokenizer().vocab_size)
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


def accepts(grammar: Grammar, text: str) -> bool:
    matcher, ids = compile_grammar(grammar, tokenizer()).matcher(), tokenizer().encode(text)
    if matcher.validate(ids) < len(ids):
        return False
    for id in ids:
        matcher.consume(id)
    return matcher._matcher.is_accepting()


def test_every_value_of_a_schema_can_be_written():
    """What is forced is the schema and no more: not the spaces, not the escapes, not a like-sounding subset."""
    for seed in range(300):
        chance = random.Random(seed)
        wanted = schema(chance)
        for separators in ((",", ":"), (", ", ": ")):
            said = value(chance, wanted)
            jsonschema.validate(said, wanted)
            text = json.dumps(said, ensure_ascii=False, separators=separators)
            assert accepts(Grammar("json_schema", wanted), text), (wanted, text)
    assert not accepts(Grammar("json_schema", {"type": "integer", "maximum": 9}), "10")


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "integer", "multipleOf": 3, "minimum": -20, "maximum": 400},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}},
        {"type": "object", "patternProperties": {"^b+$": {"type": "null"}}, "maxProperties": 2},
        {"type": "object", "required": ["z"], "additionalProperties": {"type": "null"}},
        {"type": "string", "pattern": "ab", "maxLength": 9},
        {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]},
        {"allOf": [{"type": ["string", "null"]}, {"maxLength": 3}]},
        {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}},
        *({"type": "string", "format": f} for f in ("ipv4", "ipv6", "uuid", "email")),
    ],
    ids=json.dumps,
)
def test_further_keywords_that_are_accepted_are_enforced(wanted):
    ended = 0
    for seed in range(20):
        text, whole = written(Grammar("json_schema", wanted), seed)
        ended += whole
        if whole:
            jsonschema.validate(json.loads(text), wanted, format_checker=jsonschema.FormatChecker())
    assert ended >= 10


@pytest.mark.parametrize(
    "pattern",
    [r"[A-Z]{2,3}-[0-9]+(\.[0-9]{2})?", r"(yes|no)( indeed)?!", r"[^x]{4}ü", r"[0-9]{4}-[0-9]{2}"],
)
def test_regular_expressions(pattern):
    for seed in range(20):
        text, whole = written(Grammar("regex", pattern), seed, most=200)
        assert not whole or re.fullmatch(pattern, text), text


@pytest.mark.parametrize("kind", ["json_schema", "json_object"])
def test_json_has_no_room_for_blanks(kind):
    """A model that likes nothing better than blanks would fill its answer with them."""
    grammar = Grammar(kind, {"type": "object"} if kind == "json_schema" else "")
    for text in ('{"a":[1,{}]}', '{"a": [1, {}]}', '{ "a" : [ 1 , { } ] }'):
        assert accepts(grammar, text), text
    for blank in ("  ", "\n", "\t", "\r"):
        for at in (0, 1, 4, 5, 12):
            text = '{"a":[1,{}]}'
            assert not accepts(grammar, text[:at] + blank + text[at:]), (blank, at)


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
        (Grammar("json_schema", {"properties": {"a": {"not": {"type": "null"}}}}), "not"),
        (Grammar("json_schema", {"if": {}, "then": {"x-guidance": {"lenient": True}}}), "if"),
        (Grammar("json_schema", {"x-guidance": {"lenient": True}, "contains": {}}), "contains"),
        (Grammar("json_schema", {"type": "string", "format": "nonsense"}), "nonsense"),
        (Grammar("json_schema", {"const": {1, 2}}), "is no JSON"),
        (Grammar("json_schema", {"maximum": float("nan")}), "is no JSON"),
        (Grammar("regex", r"(a|b)\1"), "backreferences"),
        (Grammar("lark", 'start: "a" %json {"contains": {}}'), "contains"),
        (Grammar("lark", 'start: start "a"'), "no text can begin"),
        (Grammar("regex", r"[^\s\S]"), "no text can begin"),
    ],
)
def test_what_is_wrong_or_would_not_be_enforced_is_refused(grammar, said):
    with pytest.raises(RequestError, match=said):
        compile_grammar(grammar, tokenizer())
    for kind, source, told in (
        ("json_schema", "{}", "a schema as a dict, not a str"),
        ("choice", (), "at least one"),
        ("choice", "ab", "a list of strings, not a str"),
        ("regexp", "", 'json_schema, json_object, regex, lark, choice. Did you mean "regex"'),
    ):
        with pytest.raises(RequestError, match=f"grammar: .*{told}"):
            Grammar(kind, source)


def test_a_regular_expressions_error_is_its_own_and_not_that_of_the_lark_around_it():
    for pattern, said in (
        ("ab(cd", 'unclosed group, at "(cd"'),
        ("a/b{3,1}", 'invalid repetition count range, the start must be <= the end, at "{3,1}"'),
        (
            "(?=a)b",
            'look-around, including look-ahead and look-behind, is not supported, at "(?=a)b"',
        ),
    ):
        with pytest.raises(RequestError) as caught:
            compile_grammar(Grammar("regex", pattern), tokenizer())
        assert str(caught.value) == f"grammar: the regex is wrong: {said}"


def test_choices_may_be_a_list():
    assert Grammar("choice", ["a", "b"]) == Grammar("choice", ("a", "b"))


def test_validate_roll_back_and_copies():
    compiled = compile_grammar(Grammar("regex", "abc(def|xyz)"), tokenizer())
    one, other = compiled.matcher(), compiled.matcher()
    letters = [tokenizer().encode(c)[0] for c in "abcdef"]
    before, _ = token_masks([(one, [], 0)], 512)
    assert one.validate(letters) == 6 and one.validate([*letters[:4], letters[0]]) == 4
    masks, _ = token_masks([(one, letters[:3], 0), (None, [], 0)], 512)
    assert masks is not None and before is not None
    assert torch.equal(masks[:1], before) and bool((masks[4] == -1).all())
    for token in letters:
        one.consume(token)
    assert one._matcher.is_accepting() and not other._matcher.is_accepting()
    with pytest.raises(WorkError, match="grammar"):
        other.consume(letters[1])


def allowed(matcher) -> list[int]:
    masks, _ = token_masks([(matcher, [], 0)], tokenizer().vocab_size)
    assert masks is not None
    return [i for i in range(masks.shape[1] * 32) if int(masks[0, i // 32]) >> i % 32 & 1]


def test_after_a_roll_back_it_stands_where_it_stood():
    compiled = compile_grammar(Grammar("json_object"), tokenizer())
    for seed in range(20):
        chance, matcher = random.Random(seed), compiled.matcher()
        before = [allowed(matcher)]
        said: list[int] = []
        while len(said) < 30 and not matcher.stopped:
            said.append(chance.choice([i for i in before[-1] if i not in tokenizer().stop_ids]))
            matcher.consume(said[-1])
            if not matcher.stopped:
                before.append(allowed(matcher))
        while said:
            back = min(len(said), chance.randint(1, 4))
            matcher.rollback(back)
            del said[len(said) - back :]
            assert allowed(matcher) == before[len(said)]


def test_only_tokens_of_the_vocabulary_and_the_end_where_the_text_is_complete():
    specials = [i for i in range(512) if tokenizer().is_special(i)]
    ends = sorted(tokenizer().stop_ids)
    anything = compile_grammar(Grammar("regex", r"(?s:.*)"), tokenizer()).matcher()
    ids = allowed(anything)
    assert max(ids) < tokenizer().vocab_size and set(ids) & set(specials) == set(ends)
    some = compile_grammar(Grammar("regex", "x{2}y?"), tokenizer()).matcher()
    (x,) = tokenizer().encode("x")
    assert not set(allowed(some)) & set(ends)
    some.consume(x)
    some.consume(x)
    assert set(ends) < set(allowed(some)) and some._matcher.is_accepting() and not some.stopped
    assert allowed(compile_grammar(Grammar("regex", ""), tokenizer()).matcher()) == ends


def sentencepiece() -> Tokenizer:
    """As Llama 2: what is encoded gets a space before it, and letters that no piece has are bytes."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdef0123-"]
    pieces += ["▁a", "▁-", "ab", "▁ab"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "-"), ("a", "b"), ("▁", "ab")]
    backend = Backend(models.BPE(ids, merges, byte_fallback=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(steps)  # type: ignore[arg-type]
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*decoder, decoders.Strip(" ", 1, 0)])
    return Tokenizer(backend, {}, stop_ids=[1])


def composing() -> Tokenizer:
    """As Qwen 2: what is encoded is composed first (NFC)."""
    content = json.loads(tokenizer().backend.to_str()) | {"normalizer": {"type": "NFC"}}
    return Tokenizer(Backend.from_str(json.dumps(content)), {}, stop_ids=tokenizer().stop_ids)


@pytest.mark.parametrize("make", [sentencepiece, composing, tokenizer])
@pytest.mark.parametrize("text", ["- abc-0123 ab", "e\u0301 x", "🙂-\u00e9"])
def test_forced_tokens_say_what_is_forced_in_any_vocabulary(make, text):
    vocabulary = make()
    matcher = compile_grammar(Grammar("regex", re.escape(text)), vocabulary).matcher()
    said: list[int] = []
    while not matcher.stopped and len(said) < 50:
        ids = matcher.forced() or allowed_first(matcher, vocabulary)
        for id in ids:
            matcher.consume(id)
        said += ids
    assert b"".join(map(vocabulary.token_bytes, said)).decode() == text


def allowed_first(matcher, vocabulary: Tokenizer) -> list[int]:
    masks = torch.zeros(1, -(-vocabulary.vocab_size // 32), dtype=torch.int32)
    matcher.mask(masks[0])
    return [next(i for i in range(vocabulary.vocab_size) if int(masks[0, i // 32]) >> i % 32 & 1)]


def test_grammars_are_compiled_once_and_go_with_their_tokenizer():
    own = composing()
    one = compile_grammar(Grammar("choice", ("a", "b")), own)
    assert compile_grammar(Grammar("choice", ("a", "b")), own) is one
    assert compile_grammar(Grammar("choice", ("a", "b")), tokenizer()) is not one
    gone = ref(own)
    del own, one
    gc.collect()
    assert gone() is None


def test_tokenizers_and_installations_that_have_no_grammars(monkeypatch):
    words = Backend(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(RequestError, match="neighbours"):
        compile_grammar(Grammar("regex", "ab"), Tokenizer(words, {}, stop_ids=[0]))
    with pytest.raises(RequestError, match="no token that ends"):
        compile_grammar(Grammar("regex", "ab"), Tokenizer(words, {}))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match="pip install llguidance"):
        compile_grammar(Grammar("regex", "ab"), composing())


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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_dead_end_in_a_grammar_is_told_and_not_logged(temperature, caplog):
    dead = Grammar("lark", 'start: "a" b\nb: b "c"')  # after "a" nothing can come
    params = SamplingParams(max_tokens=9, temperature=temperature, grammar=dead)
    (out,) = Engine(model()).generate([Request("x", params)])
    assert out.finish_reason == "error"
    assert out.error == "the grammar cannot go on: there is no token that may come next"
    assert not caplog.records
