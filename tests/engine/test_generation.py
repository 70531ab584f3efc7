"""Generation against transformers, and its independence of company, chunking and seeds."""

from __future__ import annotations

import pytest
import torch

from gristmill import Request, SamplingParams
from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.lm import ContextOverflow
from tests.tiny_model import PROMPTS, random_model

GREEDY = SamplingParams(max_tokens=24, temperature=0.0, seed=0)


def test_greedy_tokens_equal_transformers_generate(engine: Engine, oracle) -> None:
    stops = sorted(engine.tokenizer.stop_ids)
    for prompt in PROMPTS:
        ids = engine.tokenizer.prompt_ids(prompt)
        expected = oracle.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=engine.tokenizer.pad_id,
        )[0, len(ids) :].tolist()
        (out,) = engine.generate([Request(prompt, GREEDY)])
        assert list(out.token_ids) == expected
        assert out.prompt_tokens == len(ids)


def test_generation_ends_at_a_stop_token_which_the_text_does_not_show(engine: Engine) -> None:
    (free,) = engine.generate([Request(PROMPTS[0], GREEDY)])
    stop = free.token_ids[5]
    params = SamplingParams(max_tokens=24, temperature=0.0, stop_token_ids=(stop,))
    (out,) = engine.generate([Request(PROMPTS[0], params)])
    first = free.token_ids.index(stop)
    assert out.token_ids == free.token_ids[: first + 1]
    assert out.finish_reason == "stop"
    assert out.text == engine.tokenizer.decode(free.token_ids[:first])


def test_the_tokenizers_end_of_turn_stops_an_answer(engine: Engine) -> None:
    """The output weights are bent so that <|im_end|> is the likeliest after this prompt."""
    model = random_model()
    end = model.tokenizer.special("<|im_end|>")
    network = model.network
    with torch.no_grad():
        network.model.norm.weight.zero_()
        network.model.norm.weight[0] = 1.0
        sign = network.hidden(torch.tensor([[1, 2, 3]]))[0, -1, 0].sign()
        network.model.embed_tokens.weight[end, 0] = 1000.0 * sign
    (out,) = Engine(model).generate([Request(token_ids=[1, 2, 3], params=GREEDY)])
    assert out.token_ids == (end,)
    assert (out.text, out.finish_reason) == ("", "stop")


def test_logprobs_equal_transformers(engine: Engine, oracle) -> None:
    params = SamplingParams(max_tokens=16, temperature=0.9, seed=5, logprobs=4)
    for prompt in PROMPTS:
        (out,) = engine.generate([Request(prompt, params)])
        ids = engine.tokenizer.prompt_ids(prompt)
        with torch.inference_mode():
            logits = oracle(torch.tensor([[*ids, *out.token_ids]])).logits[0, len(ids) - 1 :]
        expected = logits.log_softmax(-1)
        assert out.logprobs is not None and len(out.logprobs) == len(out.token_ids)
        for place, token in enumerate(out.logprobs):
            assert token.token_id == out.token_ids[place]
            assert token.logprob == pytest.approx(float(expected[place, token.token_id]), abs=1e-4)
            values, ids_ = expected[place].topk(4)
            assert [i for i, _ in token.top] == ids_.tolist()
            assert [v for _, v in token.top] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_same_answer_alone_and_in_company(engine: Engine, temperature: float) -> None:
    requests = [
        Request(
            prompt,
            SamplingParams(
                max_tokens=8 + 7 * i, temperature=temperature, seed=i, top_p=0.95, logprobs=2
            ),
        )
        for i, prompt in enumerate(PROMPTS)
    ]
    together = engine.generate(requests)
    for request, out in zip(requests, together, strict=True):
        (alone,) = engine.generate([request])
        assert out.token_ids == alone.token_ids
        assert out.text == alone.text
        assert out.finish_reason == alone.finish_reason
        assert alone.logprobs is not None and out.logprobs is not None
        for a, b in zip(alone.logprobs, out.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_more_requests_than_rows_come_and_go(model, engine: Engine) -> None:
    """With three rows, eleven requests join and leave a running batch; the cache is merged and cut."""
    requests = [
        Request(
            PROMPTS[i % 8][: 4 + 5 * i],
            SamplingParams(max_tokens=1 + (7 * i) % 23, temperature=1.0, seed=i),
        )
        for i in range(11)
    ]
    expected = [engine.generate([request])[0] for request in requests]
    assert Engine(model, max_rows=3).generate(requests) == expected


def test_an_answer_longer_than_the_first_cache_allocation(engine: Engine, oracle) -> None:
    """180 positions: the cache starts with 128 and grows; the tokens are still transformers' own."""
    ids = engine.tokenizer.prompt_ids("heap")
    stops = sorted(engine.tokenizer.stop_ids)
    expected = oracle.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=180 - len(ids),
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=engine.tokenizer.pad_id,
    )[0, len(ids) :].tolist()
    params = SamplingParams(max_tokens=180 - len(ids), temperature=0.0)
    (out,) = engine.generate([Request("heap", params)])
    assert len(expected) > 128, "choose a prompt whose greedy answer is long"
    assert list(out.token_ids) == expected


def test_streamed_pieces_join_to_the_whole(engine: Engine) -> None:
    for i, prompt in enumerate(PROMPTS[:4]):
        params = SamplingParams(max_tokens=30, temperature=1.2, seed=i, stop=("e ", "\n\n"))
        chunks = list(engine.stream(Request(prompt, params)))
        (whole,) = engine.generate([Request(prompt, params)])
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert [c.completion for c in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].completion == whole


def test_a_stop_string_across_tokens_ends_generation(engine: Engine) -> None:
    (free,) = engine.generate([Request(PROMPTS[0], GREEDY)])
    words = [engine.tokenizer.token_bytes(i).decode(errors="replace") for i in free.token_ids]
    middle = next(
        n for n in range(3, 20) if all(w.isascii() and len(w) > 1 for w in words[n : n + 2])
    )
    stop = words[middle][-1] + words[middle + 1][0]  # the end of one token, the start of the next
    params = SamplingParams(max_tokens=24, temperature=0.0, stop=(stop,))
    (out,) = engine.generate([Request(PROMPTS[0], params)])
    assert out.text == free.text[: free.text.index(stop)]
    assert out.finish_reason == "stop"
    assert len(out.token_ids) < len(free.token_ids)


def test_seeds_reproduce_and_differ(engine: Engine) -> None:
    def tokens(seed: int) -> tuple[int, ...]:
        params = SamplingParams(max_tokens=20, temperature=1.0, seed=seed)
        return engine.generate([Request(PROMPTS[0], params)])[0].token_ids

    assert tokens(3) == tokens(3)
    assert len({tokens(seed) for seed in range(8)}) == 8


def test_a_draw_is_a_function_of_seed_and_position(engine: Engine) -> None:
    """Continuing a half-written answer under the same seed writes the same second half."""
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=11)
    ids = engine.tokenizer.prompt_ids(PROMPTS[0])
    (whole,) = engine.generate([Request(token_ids=ids, params=params)])
    begun = [*ids, *whole.token_ids[:9]]
    rest = SamplingParams(max_tokens=11, temperature=1.0, seed=11)
    (second,) = engine.generate([Request(token_ids=begun, params=rest)])
    assert second.token_ids == whole.token_ids[9:]


def test_the_context_ends_a_long_answer(engine: Engine) -> None:
    params = SamplingParams(max_tokens=10_000, temperature=1.0, seed=1)
    (out,) = engine.generate([Request(PROMPTS[0], params)])
    ended_early = out.token_ids[-1] in engine.tokenizer.stop_ids
    assert out.prompt_tokens + len(out.token_ids) == 192 or ended_early
    assert out.finish_reason == ("stop" if ended_early else "length")


def test_a_prompt_that_leaves_no_room_is_refused_with_both_counts(engine: Engine) -> None:
    (out,) = engine.generate([Request(token_ids=[65] * 191, params=GREEDY)])
    assert len(out.token_ids) == 1
    with pytest.raises(ContextOverflow, match=r"192 tokens.*192") as caught:
        engine.generate([Request(token_ids=[65] * 192)])
    assert (caught.value.tokens, caught.value.context) == (192, 192)
    with pytest.raises(ContextOverflow):
        engine.stream(Request(token_ids=[65] * 500))
    with pytest.raises(ContextOverflow, match="by 8 tokens"):
        engine.score([[65] * 200])


def test_an_empty_prompt_begins_with_the_beginning_token(engine: Engine) -> None:
    (empty,) = engine.generate([Request("", GREEDY)])
    (begun,) = engine.generate([Request(token_ids=[engine.tokenizer.bos_id], params=GREEDY)])
    assert empty == begun
    assert engine.generate([]) == []


def test_ids_outside_the_vocabulary_are_refused(engine: Engine) -> None:
    for bad in (-1, 512):
        with pytest.raises(RequestError, match=f"token id {bad} .*512"):
            engine.generate([Request(token_ids=[1, bad])])


def test_chat_is_the_template_and_then_the_answer(engine: Engine, oracle) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a heap? <|im_end|>"},
    ]
    ids = engine.tokenizer.chat_ids(messages, add_generation_prompt=True)
    out = engine.chat(messages, GREEDY)
    assert out == engine.generate([Request(token_ids=ids, params=GREEDY)])[0]
    assert out.prompt_tokens == len(ids)
    chunks = list(engine.stream_chat(messages, GREEDY))
    assert chunks[-1].completion == out


def test_scores_equal_transformers(engine: Engine, oracle) -> None:
    scored = engine.score([*PROMPTS, [5], [], [7, 8, 9]])
    assert scored[8].logprobs == (None,) and scored[9].logprobs == ()
    for text, got in zip([*PROMPTS, [5], [], [7, 8, 9]], scored, strict=True):
        ids = engine.tokenizer.prompt_ids(text) if isinstance(text, str) else text
        assert list(got.token_ids) == ids
        if len(ids) < 2:
            continue
        with torch.inference_mode():
            logprobs = oracle(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()
        assert got.logprobs[0] is None
        assert list(got.logprobs[1:]) == pytest.approx(expected, abs=1e-4)


def test_cancelled_rows_leave_and_the_others_do_not_notice(engine: Engine) -> None:
    requests = [Request(p, SamplingParams(max_tokens=20, temperature=1.0, seed=4)) for p in PROMPTS]
    expected = engine.generate(requests)
    generations = [engine.prepare(request) for request in requests]
    for generation in generations:
        engine.add(generation)
    for _ in range(5):
        engine.step()
    for generation in generations[::2]:
        generation.cancelled = True
    lengths = [len(g.output) for g in generations]
    while engine.busy:
        engine.step()
    for i, generation in enumerate(generations):
        assert generation.completion is not None
        if i % 2 == 0:
            assert len(generation.output) == lengths[i]
            assert generation.completion.finish_reason == "abort"
        else:
            assert generation.completion == expected[i]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -3.0),
        ("stop", ("a", "")),
        ("logprobs", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_padding_of_the_vocabulary_is_never_sampled(temperature):
    """Embeddings are padded to round sizes; their rows were never trained, whatever they say."""
    model = random_model(vocab_size=512)
    model.tokenizer.vocab_size = 300  # as if the other rows were padding
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=1)
    ids = Engine(model).generate([Request(token_ids=[5, 6, 7], params=params)])[0].token_ids
    assert ids and max(ids) < 300
