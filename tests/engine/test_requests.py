"""Several answers to one prompt, embeddings, adapters, and what is refused or fails alone."""

from __future__ import annotations

import pytest
import torch

from gristmill.adapters import LoraConfig, adapters_by_row, add_lora, save_adapter, unload_adapter
from gristmill.engine import Engine
from gristmill.errors import RequestError, WorkError
from gristmill.lm import CacheOverflow, Grammar, Request, SamplingParams
from tests.tiny_model import PROMPTS, random_model

PROMPT = PROMPTS[5]


def drawn(**kept) -> SamplingParams:
    return SamplingParams(**(dict(max_tokens=12, temperature=1.0, seed=3) | kept))


def test_n_answers_share_the_prompt(model):
    engine = Engine(model, prefix_caching=False)
    (out,) = engine.generate([Request(PROMPT, drawn(n=4))])
    answers = [out, *out.alternatives]
    assert len({a.token_ids for a in answers}) == 4
    assert out.token_ids == engine.generate([Request(PROMPT, drawn())])[0].token_ids
    prompt = out.prompt_tokens
    assert engine.stats.computed < 3 * prompt  # twice for two requests, not five times
    for answer in answers[1:]:  # each is what its own seed gives alone
        assert answer.seed is not None
        (alone,) = engine.generate([Request(PROMPT, drawn(seed=answer.seed))])
        assert alone.token_ids == answer.token_ids


def test_n_with_fewer_rows_and_blocks(model):
    (wide,) = Engine(model).generate([Request(PROMPT, drawn(n=5))])
    engine = Engine(model, max_rows=2, cache_tokens=224)
    (narrow,) = engine.generate([Request(PROMPT, drawn(n=5))])
    assert {a.token_ids for a in (wide, *wide.alternatives)} == {
        a.token_ids for a in (narrow, *narrow.alternatives)
    }


def test_best_of_ranks_by_mean_log_probability(model):
    engine = Engine(model)
    (every,) = engine.generate([Request(PROMPT, drawn(n=6, logprobs=0))])
    (best,) = engine.generate([Request(PROMPT, drawn(n=2, best_of=6))])

    def mean(answer) -> float:
        return sum(t.logprob for t in answer.logprobs) / len(answer.logprobs)

    ranked = sorted((every, *every.alternatives), key=mean, reverse=True)
    assert [a.token_ids for a in (best, *best.alternatives)] == [a.token_ids for a in ranked[:2]]
    assert best.logprobs is None
    with pytest.raises(RequestError, match="streamed"):
        engine.stream(Request(PROMPT, drawn(n=2)))


def test_a_seed_is_chosen_and_told(model):
    engine = Engine(model)
    (out,) = engine.generate([Request(PROMPT, drawn(seed=None))])
    assert out.seed is not None
    (again,) = engine.generate([Request(PROMPT, drawn(seed=out.seed))])
    assert again.token_ids == out.token_ids


def test_ignore_eos_and_min_tokens(model):
    engine = Engine(model)
    stop = engine.generate([Request(PROMPT, drawn(temperature=0.0))])[0].token_ids[2]
    params = dict(temperature=0.0, stop_token_ids=(stop,))
    (stopped,) = engine.generate([Request(PROMPT, drawn(**params))])
    assert stopped.finish_reason == "stop" and len(stopped.token_ids) <= 3
    (longer,) = engine.generate([Request(PROMPT, drawn(**params, min_tokens=6))])
    assert len(longer.token_ids) >= 6 and stop not in longer.token_ids[:5]


def test_embeddings_are_pooled_final_states(model):
    engine = Engine(model, step_tokens=16)
    texts = [PROMPT, "x", [5, 6, 7]]
    mean, last = engine.embed(texts), engine.embed(texts, pooling="last")
    for at, text in enumerate(texts):
        ids = engine.tokenizer.prompt_ids(text) if isinstance(text, str) else text
        with torch.inference_mode():
            states = model.network.hidden(torch.tensor([ids]))[0]
        for found, expected in ((mean, states.mean(0)), (last, states[-1])):
            torch.testing.assert_close(found[at], expected / expected.norm(), atol=1e-5, rtol=0)
    assert torch.equal(engine.embed([PROMPT]), mean[:1])
    with pytest.raises(RequestError, match="text 1 is empty"):
        engine.embed(["x", []])


def make_adapter(model, path, seed: int) -> None:
    add_lora(model.network, LoraConfig(rank=4), "made", seed)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if ".lora.made." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.3)
    save_adapter(model.network, path, "made")
    unload_adapter(model.network, "made")


def test_adapters_in_one_batch_swapped_while_they_run(tmp_path):
    model = random_model()
    for seed in (1, 2):
        make_adapter(model, tmp_path / str(seed), seed)
    engine = Engine(model)
    params = drawn(temperature=0.0, logprobs=0)
    base = engine.generate([Request(PROMPT, params)])[0]
    engine.load_adapter("one", tmp_path / "1")
    engine.load_adapter("two", tmp_path / "2")
    asked = [Request(PROMPT, params, adapter=name) for name in (None, "one", "two")]
    together = engine.generate(asked)
    assert together[0] == base
    assert len({out.token_ids for out in together}) == 3
    assert [engine.generate([request])[0] for request in asked] == together
    ids = engine.tokenizer.prompt_ids(PROMPT)
    resident = [engine._adapters.serving[name] for name in ("one", "two")]
    rows = torch.tensor([[*ids, *out.token_ids] for out in together])
    with torch.inference_mode(), adapters_by_row(model.network, [None, *resident]):
        logprobs = model.network(rows)[:, len(ids) - 1 : -1].log_softmax(-1)
    for row, out in zip(logprobs, together, strict=True):
        for at, token in enumerate(out.logprobs or ()):
            assert token.logprob == pytest.approx(float(row[at, token.token_id]), abs=1e-4)

    # a newer "one" while the older one runs
    running = engine.prepare(asked[1])
    engine.add(running)
    for _ in range(4):
        engine.step()
    engine.load_adapter("one", tmp_path / "2")
    assert engine.generate([asked[1]])[0].token_ids == together[2].token_ids
    while engine.busy:
        engine.step()
    assert running.completion == together[1]
    engine.unload_adapter("one")
    engine.unload_adapter("two")
    assert engine.adapters == ()
    with pytest.raises(RequestError, match="no adapter 'one'"):
        engine.generate([asked[1]])
    assert engine.generate([Request(PROMPT, params)])[0] == base
    assert not [name for name, _ in model.network.named_parameters() if "lora" in name]


def test_weights_that_a_trainer_writes_are_seen(model):
    model = random_model()
    engine = Engine(model)
    params = drawn(temperature=0.0)
    before = engine.generate([Request(PROMPT, params)])[0]
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(1.1).add_(0.01)
    engine.update_weights()
    after = engine.generate([Request(PROMPT, params)])[0]
    assert after.cached_tokens == 0
    assert after == Engine(model).generate([Request(PROMPT, params)])[0] != before


def test_salts_are_not_shared(model):
    engine = Engine(model)
    cached = [
        engine.generate([Request(PROMPT, drawn(), cache_salt=salt)])[0].cached_tokens
        for salt in ("a", "b", "a")
    ]
    assert cached[:2] == [0, 0] and cached[2] > 0


def test_more_than_the_cache_holds_is_refused_with_both_counts(model):
    engine = Engine(model, cache_tokens=64)
    with pytest.raises(CacheOverflow, match=r"(?s)72.*64"):
        engine.generate([Request(token_ids=[65] * 60, params=drawn())])
    assert len(engine.generate([Request(token_ids=[65] * 52, params=drawn())])[0].token_ids) > 0
    for read in (engine.score, engine.embed):
        read([[65] * 64])
        with pytest.raises(
            CacheOverflow, match=r"the text has 65 tokens.*holds 64; shorten it, or"
        ):
            read([[65] * 65])


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda e: e.embed("text"), r"give a list, as in embed\(\[.*not 'text'"),
        (lambda e: e.score("text"), r"give a list, as in score\(\["),
        (lambda e: e.score([5, 6]), "a string or token ids, not 5"),
        (lambda e: e.score([["a"]]), "a string or token ids"),
        (lambda e: e.embed(["text"], pooling="max"), 'pooling must be "mean" or "last"'),
        (lambda e: e.generate("text"), r"give a list, as in generate\(\["),
        (lambda e: e.generate(Request("text")), "give a list"),
        (lambda e: e.generate(["text"]), "a request is a Request.*not 'text'"),
        (lambda e: e.stream("text"), "a request is a Request"),
        (lambda e: e.chat("text"), "give a list, as in chat"),
        (lambda e: e.chat({"role": "user", "content": "text"}), "give a list, as in chat"),
        (lambda e: Request(None), "prompt must be a string, not None"),
        (lambda e: Request("a", {"max_tokens": 3}), "params must be SamplingParams"),
        (lambda e: Request(token_ids="abc"), "token_ids must be token ids"),
        (lambda e: Request("a", adapter=3), "adapter must be the name"),
        (lambda e: Engine("path"), r"Engine\(Model.load\("),
    ],
)
def test_what_is_of_another_type_is_refused_in_a_sentence(engine, ask, said):
    with pytest.raises(RequestError, match=said):
        ask(engine)


def test_no_texts_have_no_embeddings(engine):
    assert engine.embed([]).shape == (0, 48)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (dict(block_size=24), "block_size"),
        (dict(max_rows=0), "max_rows"),
        (dict(step_tokens=0), "step_tokens"),
        (dict(cache_tokens=0), "cache_tokens"),
        (dict(draft="nonsense"), "draft"),
    ],
)
def test_bad_sizes_are_named(model, kept, said):
    with pytest.raises(RequestError, match=said):
        Engine(model, **kept)


def test_one_that_fails_does_not_touch_the_others(model, caplog):
    engine = Engine(model)
    expected = engine.generate([Request(p, drawn()) for p in PROMPTS[:3]])
    generations = [engine.prepare(Request(p, drawn())) for p in PROMPTS[:3]]

    def broken(token: int) -> str:
        raise ValueError("a processor broke")

    generations[1].text.push = broken  # type: ignore[method-assign]
    for generation in generations:
        engine.add(generation)
    while engine.busy:
        engine.step()
    failed = generations[1].completion
    assert failed is not None and failed.finish_reason == "error"
    assert "its log says how" in (failed.error or "") and "a processor broke" in caplog.text
    assert [generations[i].completion for i in (0, 2)] == [expected[i] for i in (0, 2)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_may_be_said_that_request_fails(model, temperature, caplog):
    none = Grammar("choice", ("word",))
    params = drawn(temperature=temperature, grammar=none, allowed_token_ids=(5,))
    failed, fine = Engine(model).generate([Request("x", params), Request("x", drawn())])
    assert failed.finish_reason == "error" and "leave no token" in (failed.error or "")
    assert fine == Engine(model).generate([Request("x", drawn())])[0]
    assert not caplog.records, "what a request asked for is no fault of the program"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("grammar", [None, Grammar("regex", "[ab]{5}")])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_logits_that_are_not_finite_are_called_so(temperature, grammar, value, caplog):
    model = random_model()
    with torch.no_grad():
        model.network.model.norm.weight[3] = float(value)
    params = drawn(temperature=temperature, grammar=grammar)
    (out,) = Engine(model).generate([Request(token_ids=[5, 6, 7], params=params)])
    assert "logits are not finite at position 3" in (out.error or "") and not out.token_ids
    assert not caplog.records


def test_streams_side_by_side(model):
    engine = Engine(model)
    expected = engine.generate([Request(p, drawn()) for p in PROMPTS[:2]])
    one, two = (engine.stream(Request(p, drawn())) for p in PROMPTS[:2])
    texts = ["", ""]
    for pair in zip(one, two, strict=False):
        for i, chunk in enumerate(pair):
            texts[i] += chunk.text
    texts[0] += "".join(chunk.text for chunk in one)
    texts[1] += "".join(chunk.text for chunk in two)
    assert engine.generate([Request(PROMPTS[0], drawn())])[0] == expected[0]
    assert texts[0] == expected[0].text and texts[1].startswith(expected[1].text[:-8])


def test_a_stream_left_early_gives_its_blocks_back(model):
    engine = Engine(model)
    stream = engine.stream(Request(PROMPT, drawn(max_tokens=50)))
    next(stream)
    stream.close()
    engine.step()
    assert not engine.busy


@pytest.mark.parametrize("draft", [None, "ngram", "early-exit"])
def test_a_grammar_too_complex_for_its_library_fails_alone(model, draft):
    engine = Engine(model, draft=draft, adaptive_drafts=False)
    monster = drawn(grammar=Grammar("regex", "(a?){400}a{400}"), max_tokens=20)
    fine = Request(PROMPTS[1], drawn())
    (expected,) = Engine(model).generate([fine])
    for _ in range(2):  # the second time it is compiled already
        failed, other = engine.generate([Request("x", monster), fine])
        assert failed.finish_reason == "error" and failed.error
        assert other == expected
        with pytest.raises(WorkError):
            failed.checked()


def test_drafts_end_where_a_grammar_does(model):
    for kept in (dict(ignore_eos=True), dict(min_tokens=20)):
        params = drawn(grammar=Grammar("regex", "[ab]{1,3}"), max_tokens=30, **kept)
        plain = Engine(model).generate([Request("x", params)])
        engine = Engine(model, draft="early-exit", adaptive_drafts=False)
        assert engine.generate([Request("x", params)]) == plain


def test_adapters_and_drafts_together(tmp_path):
    model = random_model()
    for seed in (1, 2):
        make_adapter(model, tmp_path / str(seed), seed)
    expected = []
    for draft in (None, "early-exit", "ngram"):
        engine = Engine(model, draft=draft, adaptive_drafts=False)
        engine.load_adapter("a", tmp_path / "1")
        asked = [Request(PROMPT, drawn(temperature=0.0), adapter=name) for name in (None, "a")]
        expected.append(engine.generate(asked))
        engine.load_adapter("a", tmp_path / "2")
        expected[-1] += engine.generate(asked[1:])
        waiting = engine.stream(asked[1])  # prepared, not yet added
        engine.unload_adapter("a")
        assert "".join(chunk.text for chunk in waiting) == expected[-1][2].text
    assert expected[0] == expected[1] == expected[2]


def test_an_adapter_that_cannot_be_run_leaves_the_good_one(tmp_path):
    model = random_model()
    make_adapter(model, tmp_path / "good", 1)
    add_lora(model.network, LoraConfig(rank=4, dora=True), "dora")
    save_adapter(model.network, tmp_path / "dora", "dora")
    unload_adapter(model.network, "dora")
    engine = Engine(model)
    engine.load_adapter("a", tmp_path / "good")
    (before,) = engine.generate([Request(PROMPT, drawn(), adapter="a")])
    with pytest.raises(RequestError, match="DoRA"):
        engine.load_adapter("a", tmp_path / "dora")
    assert engine.generate([Request(PROMPT, drawn(), adapter="a")]) == [before]


def test_forced_tokens_obey_other_bans(model):
    params = drawn(grammar=Grammar("regex", "[a]bc"), bad_words=("b",))
    (out,) = Engine(model).generate([Request("x", params)])
    assert "b" not in out.text and out.finish_reason == "error"


def test_cached_tokens_are_of_the_prompt_and_counted_once(model):
    engine = Engine(model, cache_tokens=384, max_rows=12)
    params = drawn(max_tokens=60, ignore_eos=True)
    asked = [Request(token_ids=[65 + i] * 20, params=params) for i in range(12)]
    found = engine.generate(asked)
    assert engine.stats.preemptions > 0
    assert all(c.cached_tokens <= c.prompt_tokens for c in found)
    assert engine.stats.prefix_cache_queries == 12 * 20
    (several,) = engine.generate([Request(token_ids=[70] * 20, params=drawn(n=3))])
    assert {c.cached_tokens for c in (several, *several.alternatives)} == {several.cached_tokens}


def test_newcomers_get_their_share_beside_many_that_decode(model):
    """A quarter of the budget is kept for prompts, whatever drafts and rows would take."""
    for kept in (dict(step_tokens=4), dict(step_tokens=36, draft="ngram", adaptive_drafts=False)):
        engine = Engine(model, max_rows=5, prefix_caching=False, **kept)
        loop = [65, 66] * 8
        for _ in range(4):
            engine.add(
                engine.prepare(
                    Request(token_ids=loop, params=drawn(max_tokens=150, ignore_eos=True))
                )
            )
        for _ in range(30):
            engine.step()
        newcomer = engine.prepare(Request(token_ids=[90] * 8, params=drawn(max_tokens=1)))
        engine.add(newcomer)
        steps = 0
        while newcomer.completion is None:
            engine.step()
            steps += 1
        assert steps <= 8, "eight tokens, one a step at the least"


def test_a_short_prompt_with_a_long_ones_beginning_waits_for_that_alone(model):
    engine = Engine(model, step_tokens=16)
    long = engine.prepare(Request(token_ids=[65] * 16 + [70] * 150, params=drawn(max_tokens=1)))
    short = engine.prepare(Request(token_ids=[65] * 16 + [71] * 4, params=drawn(max_tokens=1)))
    engine.add(long)
    engine.add(short)
    for _ in range(3):
        engine.step()
    assert short.completion is not None and long.completion is None
