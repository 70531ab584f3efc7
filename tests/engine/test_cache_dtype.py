"""Runners and engines that keep keys and values in float16, int8 and int4: answers still do not depend on load."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from gristmill.engine import Engine, native, runner
from gristmill.engine.kept import CACHE_DTYPES, chosen
from gristmill.engine.measure import cache_bytes
from gristmill.engine.native import NativeRunner
from gristmill.engine.ragged import ragged
from gristmill.engine.torch_runner import TorchRunner
from gristmill.errors import RequestError
from gristmill.formats import Model
from gristmill.kernels import extension
from gristmill.lm import Completion
from gristmill.quantize.int8 import quantize_network
from tests.engine import test_exactness as exactness
from tests.engine.test_native import network_of, some_tokens, whole
from tests.tiny_model import random_model

needs_native = pytest.mark.skipif(
    extension is None, reason="gristmill._native was not built (no C++ compiler)"
)
NARROW = CACHE_DTYPES[1:]


@needs_native
@pytest.mark.parametrize(("kept", "most"), [("float16", 1e-3), ("int8", 0.02), ("int4", 0.3)])
@pytest.mark.parametrize("case", ["llama, biases", "gemma2", "gpt_oss"])
def test_native_runner_against_the_twin(case, kept, most, tmp_path):
    """The two round alike, but what is a tie for one may not be for the other: their products differ in the last
    bits, and a code that turns out one higher moves later layers. So most logits agree closely, and all within `most`.
    """
    network, tokens = network_of(case, tmp_path), some_tokens(60)
    logits = []
    for kind in (NativeRunner, TorchRunner):
        own = kind(network, 8, 16, kept)
        batch = ragged([whole(tokens, [3, 1, 0, 2])], 16)
        logits.append(own.logits(own.hidden(batch)))
    difference = (logits[0] - logits[1]).abs()
    assert difference.median() <= most / 20 and difference.max() <= most
    with torch.inference_mode():
        plain = network(torch.tensor([tokens]))[0]
    assert (logits[0] - plain).abs().max() > 1e-5  # it is another form


def test_latent_attention_keeps_its_latents_narrow(tmp_path):
    network, tokens = network_of("deepseek_v3", tmp_path), some_tokens(40)
    with torch.inference_mode():
        plain = network(torch.tensor([tokens]))[0]
    errors = []
    for kept in CACHE_DTYPES:
        own = TorchRunner(network, 8, 16, kept)
        found = own.logits(own.hidden(ragged([whole(tokens, [3, 1, 0])], 16)))
        errors.append(float((found - plain).abs().max()))
    assert errors[0] < 1e-4 and errors == sorted(errors) and errors[-1] > errors[0]


def asked():
    return exactness.asked()[::2]


@cache
def alone(kept) -> tuple[Completion, ...]:
    return tuple(
        Engine(exactness.model(), max_rows=1, cache_dtype=kept).generate([request])[0]
        for request in asked()
    )


@needs_native
@pytest.mark.parametrize("kept", NARROW)
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"step_tokens": 7, "prefix_caching": False},
        {"cache_tokens": 160, "max_rows": 21},
        {"draft": "ngram", "draft_tokens": 5, "adaptive_drafts": False},
        {"draft": "itself", "draft_tokens": 5, "adaptive_drafts": False},
        {"draft": "early-exit", "draft_tokens": 5, "adaptive_drafts": False, "block_size": 64},
    ],
    ids=["batch and prefix hit", "pieces", "preemption", "lookup", "draft model", "early exit"],
)
def test_answers_do_not_depend_on_load(kept, setting):
    own = {**setting, "cache_dtype": kept}
    if own.get("draft") == "itself":
        own["draft"] = exactness.model()
    engine = Engine(exactness.model(), **own)
    rounds = [engine.generate(asked())]
    if not setting:
        rounds.append(engine.generate(asked()))
        assert sum(c.cached_tokens for c in rounds[1]) > sum(c.cached_tokens for c in rounds[0])
    for found in rounds:
        for a, b in zip(alone(kept), found, strict=True):
            assert a == b  # tokens, log-probabilities and alternatives, bit for bit
    assert engine.stats.preemptions > 0 or "cache_tokens" not in setting
    assert engine.stats.spec_drafted > 0 or "draft" not in setting
    assert [c.logprobs for c in alone(kept)] != [c.logprobs for c in alone("float32")]


def test_bytes_are_those_that_are_held(monkeypatch):
    """Heads of 16 elements: 16 codes and for int8 a scale of 4 bytes, for int4 two of 2 and room for 32 values."""
    model = random_model()
    network, config = model.network, model.config
    heads = config.num_layers * config.num_kv_heads * 16  # of a block of 16 tokens
    each = {"float32": 64 + 64, "float16": 32 + 32, "int8": 20 + 20, "int4": 12 + 20}
    if extension is not None:
        for kept, size in each.items():
            assert NativeRunner.block_bytes(network, 16, kept) == heads * size
            own = NativeRunner(network, 5, 16, kept)
            assert own._cache.keys.nbytes + own._cache.values.nbytes == 5 * heads * size
    each["int4"] = 12 + 12
    monkeypatch.setattr(runner, "free_bytes", lambda device: 1 << 20)
    for kept, size in each.items():
        assert TorchRunner.block_bytes(network, 16, kept) == heads * size
        own = TorchRunner(network, 5, 16, kept)
        held = [*own._cache.keys, *own._cache.values]
        assert sum(t.nbytes for t in held) == 5 * heads * size
        engine = Engine(model, runner="torch", cache_dtype=kept)
        assert engine.cache_tokens == 16 * min(64 * 12, int(0.4 * (1 << 20)) // (heads * size))
        assert f"{kept} key-value cache" in engine.describe()
        assert cache_bytes(engine, 10) == 10 * config.num_layers * config.num_kv_heads * size


def test_auto_takes_float16_for_narrow_weights_of_the_native_runner():
    def auto(network, native=True):
        return chosen("auto", network, native)

    assert auto(random_model().network) == "float32"
    assert auto(random_model().network.bfloat16()) == auto(random_model().network.half())
    assert auto(random_model().network.bfloat16()) == "float16"
    assert auto(random_model().network.bfloat16(), native=False) == "float32"
    quantized = random_model().network
    quantize_network(quantized)
    assert auto(quantized) == "float16"
    assert Engine(random_model()).cache_dtype == "float32"
    assert Engine(random_model(), cache_dtype="int8").cache_dtype == "int8"
    with pytest.raises(RequestError, match='"int8", "int4", not'):
        Engine(random_model(), cache_dtype="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", CACHE_DTYPES)
def test_without_native_code_it_is_said_before_anything_is_counted(kept, monkeypatch):
    monkeypatch.setattr(native, "extension", None)
    monkeypatch.setattr(native, "why_missing", "it was not built")
    with pytest.raises(RequestError, match="cannot run this model: it was not built"):
        Engine(random_model(), runner="native", cache_dtype=kept)
    assert Engine(random_model(), cache_dtype=kept).runner_name == "torch"


@needs_native
def test_the_price_on_real_weights():
    """Of the 260K-parameter story model, on its own stories. Its heads have 8 elements, so that int4 has no others to
    share a step with, and its attention is sharp: larger models pay less (docs/explanation/engine.md)."""
    model = Model.load(Path("../shared/data/models/stories260K.bin"))
    params = replace(exactness.asked()[1].params, max_tokens=300, logprobs=None)
    requests = [
        replace(exactness.asked()[0], prompt="", params=replace(params, seed=i)) for i in range(4)
    ]
    rows = [[1, *c.token_ids] for c in Engine(model).generate(requests)]

    def mean_logprob(kept) -> float:
        said = [s.logprobs[1:] for s in Engine(model, cache_dtype=kept).score(rows)]
        return float(np.mean([x for row in said for x in row]))

    plain = mean_logprob("float32")
    for kept, most in (("float16", 1.0002), ("int8", 1.01), ("int4", 1.8)):
        assert math.exp(plain - mean_logprob(kept)) <= most, kept
