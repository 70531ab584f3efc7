"""Quantized GGUF files run as they are: the weights are those that widening gives, and 8-bit activations cost no more
than they cost llama.cpp."""

from __future__ import annotations

import heapq
from pathlib import Path
from statistics import median

import pytest
import torch

from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.formats import Model, load_network
from gristmill.formats.gguf_models.model import save_gguf
from gristmill.kernels import QuantizedEmbedding, QuantizedLinear, QuantizedStack, has_native
from gristmill.lm import Request, SamplingParams
from gristmill.tokenizer import train_bpe
from tests.families import theirs
from tests.formats.gguf_models.test_llama_cpp import printable
from tests.llama_cpp import running

WIDE = dict(hidden_size=256, intermediate_size=512, max_position_embeddings=256)
CASES = {
    "llama": {},
    "llama, llama3 rope": {},  # tied
    "phi3": {},  # fused projections
    "gpt2": dict(n_embd=256, n_inner=512, n_positions=256),
    "qwen3_moe": dict(moe_intermediate_size=256, norm_topk_prob=True),
    "mixtral": {},
}


@pytest.fixture(scope="module", params=CASES)
def written(request, tmp_path_factory) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp("coded")
    case = request.param
    theirs(case, **WIDE, **CASES[case]).save_pretrained(root / "hf")
    tokenizer = train_bpe(iter([Path(heapq.__file__).read_text(encoding="utf-8")]), 390)
    network = load_network(root / "hf")
    for quant in ("Q4_K_M", "Q8_0", "Q4_0"):
        save_gguf(network, tokenizer, root / f"{quant}.gguf", quant)
    return case, root


@torch.no_grad()
@pytest.mark.parametrize("quant", ["Q4_K_M", "Q8_0", "Q4_0"])
def test_the_weights_are_those_of_the_file(written, quant):
    case, root = written
    path = root / f"{quant}.gguf"
    tokens = torch.randint(3, 320, (2, 40), generator=torch.Generator().manual_seed(0))
    widened, coded = Model.load(path, widen=True), Model.load(path, activations="float")
    kinds = {type(m) for m in coded.network.modules()}
    assert {QuantizedLinear, QuantizedEmbedding} <= kinds
    assert (QuantizedStack in kinds) == (case in ("qwen3_moe", "mixtral"))
    expected = widened(tokens)
    assert (coded(tokens) - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.skipif(not has_native, reason="gristmill._native was not built (no C++ compiler)")
@torch.no_grad()
@pytest.mark.parametrize("quant", ["Q4_K_M", "Q8_0", "Q4_0"])
def test_rounded_activations_cost_no_more_than_llama_cpps(written, quant):
    _, root = written
    path = root / f"{quant}.gguf"
    printable(path, root / "printable.gguf")
    exact, engine = Model.load(path, widen=True), Engine(Model.load(path))
    assert engine.runner_name == "native"
    ours, others = [], []
    with running(root / "printable.gguf", 256) as llama:
        for seed in range(6):
            tokens = torch.randint(3, 320, (24,), generator=torch.Generator().manual_seed(seed))
            expected = exact(tokens[None])[0, -1].log_softmax(-1)
            params = SamplingParams(max_tokens=1, temperature=0, logprobs=400)
            (said,) = engine.generate([Request(token_ids=tokens.tolist(), params=params)])
            mine = dict(said.logprobs[0].top)
            for id, logprob in llama.top(tokens.tolist()).items():
                others.append(abs(logprob - float(expected[id])))
                ours.append(abs(mine[id] - float(expected[id])))
    # The median: where experts are chosen, one that changes by a hair makes a large difference.
    middle = [median(errors) for errors in (ours, others)]
    assert middle[0] <= 1.3 * middle[1], middle


@pytest.mark.skipif(not has_native, reason="gristmill._native was not built (no C++ compiler)")
@torch.no_grad()
def test_a_row_is_the_same_in_any_company(written):
    _, root = written
    engine = Engine(Model.load(root / "Q4_K_M.gguf"), step_tokens=32)
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=0)
    draw = torch.Generator().manual_seed(5)
    asked = [
        Request(token_ids=torch.randint(3, 320, (n,), generator=draw).tolist(), params=params)
        for n in (5, 60, 17, 33)
    ]
    together = engine.generate(asked)
    for request, answer in zip(asked, together, strict=True):
        engine.update_weights()  # nothing is found in the cache
        (alone,) = engine.generate([request])
        assert alone.token_ids == answer.token_ids
        assert alone.logprobs == answer.logprobs


def test_saving_again_is_refused(written, tmp_path):
    _, root = written
    model = Model.load(root / "Q8_0.gguf")
    with pytest.raises(RequestError, match="quantized already"):
        model.save(tmp_path / "again.gguf", quant="Q4_0")
    with pytest.raises(RequestError):
        model.save(tmp_path / "hf")
