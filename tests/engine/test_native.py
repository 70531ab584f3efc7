"""The native runner against our torch network, which is held to transformers elsewhere; and its bits against itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from gristmill import kernels
from gristmill.adapters import LoraConfig, activate, adapters_by_row, add_lora, merge
from gristmill.engine.native import NativeRunner
from gristmill.engine.ragged import Span, ragged
from gristmill.errors import RequestError
from gristmill.formats import load_network
from gristmill.model import SLIDING, Transformer
from gristmill.quantize.int8 import quantize_network
from tests.families import CASES, saved

pytestmark = pytest.mark.skipif(
    not kernels.instruction_sets(), reason="gristmill._native was not built (no C++ compiler)"
)
BLOCK = 16
LENGTHS = (1, 5, 16, 17, 50, 100)
CACHED = [case for case in CASES if not case.startswith("deepseek")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def network_of(case: str, root: Path) -> Transformer:
    return load_network(saved(case, root)[1]).eval()


def some_tokens(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 400, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def whole(tokens: list[int], table: list[int], adapter: str | None = None) -> Span:
    return Span(tokens, 0, table, len(tokens), len(tokens), adapter)


def blocks(length: int, first: int = 0) -> list[int]:
    return list(range(first, first - (-length // BLOCK)))


def step(runner: NativeRunner, *spans: Span) -> list[torch.Tensor]:
    """Logits of the wanted tokens of each span."""
    logits = runner.logits(runner.hidden(ragged(spans, BLOCK)))
    return list(logits.split([span.wanted for span in spans]))


def in_pieces(runner: NativeRunner, tokens: list[int], table: list[int], size: int) -> torch.Tensor:
    """Logits of all tokens, `size` at a time."""
    rows = []
    for at in range(0, len(tokens), size):
        piece = tokens[at : at + size]
        rows += step(runner, Span(piece, at, table, len(tokens), len(piece)))
    return torch.cat(rows)


@pytest.mark.parametrize("case", CACHED)
def test_every_family_gives_the_logits_of_the_torch_network(case: str, root: Path):
    network = network_of(case, root)
    assert NativeRunner.unsupported(network) is None
    runner = NativeRunner(network, 8, BLOCK)
    for length in LENGTHS:
        tokens = some_tokens(length, seed=length)
        with torch.inference_mode():
            expected = network(torch.tensor([tokens]))[0]
        [got] = step(runner, whole(tokens, blocks(length)))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CACHED)
def test_bits_do_not_depend_on_chunks_company_blocks_or_threads(case: str, root: Path):
    network = network_of(case, root)
    tokens, others = some_tokens(75), [some_tokens(n, seed=n) for n in (1, 33, 20)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        [alone] = step(NativeRunner(network, 8, BLOCK), whole(tokens, blocks(75)))
        for torch_threads in (1, 2):
            torch.set_num_threads(torch_threads)
            runner = NativeRunner(network, 16, BLOCK)
            scattered = [9, 2, 14, 0, 7]
            for size in (1, 7, 16, 75):
                assert torch.equal(in_pieces(runner, tokens, scattered, size), alone)
            # The middle of the prompt as a chunk among whole prompts, its beginning in the cache.
            middle = Span(tokens[40:60], 40, scattered, len(tokens), 20)
            company = [
                whole(o, [3 + 5 * i, 4, 5][: len(blocks(len(o)))]) for i, o in enumerate(others[:1])
            ]
            company += [whole(others[1], [10, 11, 12])]
            got = step(runner, *company, middle, whole(others[2], [13, 15]))[2]
            assert torch.equal(got, alone[40:60])
            # Five rows at once, as drafts are verified.
            assert torch.equal(
                step(runner, Span(tokens[60:65], 60, scattered, 75, 5))[0], alone[60:65]
            )
            # What stood in later positions before does not matter.
            step(runner, Span(others[1][:15], 60, scattered, 75, 15))
            assert torch.equal(in_pieces(runner, tokens[:50], scattered, 50), alone[:50])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("isa", ["scalar", "avx2"])
@pytest.mark.parametrize("case", ["llama, biases", "gemma2", "gpt2", "gpt_oss"])
def test_other_instruction_sets(case: str, isa: str, root: Path):
    """avx2 has avx512's bits; scalar, which cannot fuse multiply and add, its numbers."""
    if isa not in kernels.instruction_sets():
        pytest.skip(f"this machine cannot run {isa}")
    network, tokens = network_of(case, root), some_tokens(75)
    [best] = step(NativeRunner(network, 8, BLOCK), whole(tokens, blocks(75)))
    [other] = step(NativeRunner(network, 8, BLOCK, isa=isa), whole(tokens, blocks(75)))
    if isa == "avx2":
        assert torch.equal(other, best)
    torch.testing.assert_close(other, best, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_read_as_they_are(dtype: torch.dtype, root: Path):
    """Everything but the weights is fp32, so the oracle is the same network widened."""
    for case in ("llama, biases", "gemma3_text", "mixtral", "gpt2"):
        network, tokens = network_of(case, root).to(dtype), some_tokens(60)
        [got] = step(NativeRunner(network, 8, BLOCK), whole(tokens, blocks(60)))
        with torch.inference_mode():
            expected = network.float()(torch.tensor([tokens]))[0]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_8_bit_weights(root: Path):
    network, tokens = network_of("qwen3", root), some_tokens(60)
    quantize_network(network)
    [got] = step(NativeRunner(network, 8, BLOCK), whole(tokens, blocks(60)))
    with torch.inference_mode():
        expected = network(torch.tensor([tokens]))[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def adapted(root: Path) -> Transformer:
    """With two adapters of other layers and ranks, whose B is not zero."""
    network = network_of("llama, biases", root)
    add_lora(network, LoraConfig(rank=5, alpha=8), "small", seed=1)
    add_lora(network, LoraConfig(rank=16, alpha=8, target_modules=["q_proj", "down_proj"]), "other")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora." in name and name.endswith(".B"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    activate(network, None)
    return network.eval()


def test_each_request_has_its_own_adapter(root: Path):
    network = adapted(root)
    runner = NativeRunner(network, 32, BLOCK)
    names = ["small", None, "other", "other", None, "small"]
    spans, rows = [], []
    for i, name in enumerate(names):
        tokens = some_tokens(20, seed=i)
        spans.append(whole(tokens, blocks(20, first=2 * i), name))
        rows.append(tokens)
    got = step(runner, *spans)
    with torch.inference_mode(), adapters_by_row(network, names):
        expected = network(torch.tensor(rows))
    torch.testing.assert_close(torch.stack(got), expected, rtol=0, atol=1e-4)
    assert (got[0] - step(runner, whole(rows[0], blocks(20)))[0]).abs().max() > 0.01
    for span, logits in zip(spans, got, strict=True):
        assert torch.equal(step(runner, span)[0], logits)
    base = NativeRunner(network_of("llama, biases", root), 2, BLOCK)
    assert torch.equal(step(base, whole(rows[1], blocks(20)))[0], got[1])


def test_the_active_adapter_is_for_those_who_name_none(root: Path):
    network, tokens = adapted(root), some_tokens(20)
    activate(network, "other")
    runner = NativeRunner(network, 2, BLOCK)
    with torch.inference_mode():
        expected = network(torch.tensor([tokens]))[0]
    [got] = step(runner, whole(tokens, blocks(20)))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    merge(network, "other")
    runner.refresh()
    [merged] = step(runner, whole(tokens, blocks(20)))
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)


def test_what_it_cannot_run_it_names(root: Path):
    assert "latent" in (NativeRunner.unsupported(network_of("deepseek_v3", root)) or "")
    network = network_of("llama", root)
    runner = NativeRunner(network, 2, BLOCK)
    add_lora(network, LoraConfig(rank=2, dora=True))
    assert "DoRA" in (NativeRunner.unsupported(network) or "")
    with pytest.raises(RequestError, match="DoRA"):
        runner.refresh()
    network = network_of("llama", root)
    network.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert "hook" in (NativeRunner.unsupported(network) or "")
    assert "float64" in (NativeRunner.unsupported(network_of("llama", root).double()) or "")


def test_weights_that_change_in_place_are_seen(root: Path):
    network, tokens = network_of("olmo2", root), some_tokens(20)
    runner = NativeRunner(network, 2, BLOCK)
    step(runner, whole(tokens, blocks(20)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
        expected = network(torch.tensor([tokens]))[0]
    [got] = step(runner, whole(tokens, blocks(20)))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_first_layers_over_the_cache_of_the_whole(root: Path):
    network, tokens = network_of("gemma3_text", root), some_tokens(40)
    runner = NativeRunner(network, 4, BLOCK)
    early = NativeRunner(network, 4, BLOCK, layers=2, shared=runner)
    step(runner, whole(tokens[:39], blocks(40)))
    [got] = step(early, Span(tokens[39:], 39, blocks(40), 40, 1))
    network.model.layers = network.model.layers[:2]
    network.config = dataclasses.replace(
        network.config, num_layers=2, layer_types=(SLIDING, SLIDING)
    )
    with torch.inference_mode():
        expected = network(torch.tensor([tokens]))[0, -1:]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_a_copied_block_serves_as_the_first(root: Path):
    network, tokens = network_of("qwen3", root), some_tokens(40)
    runner = NativeRunner(network, 8, BLOCK)
    [whole_logits] = step(runner, whole(tokens, [0, 1, 2]))
    runner.copy_block(1, 5)
    [got] = step(runner, Span(tokens[32:], 32, [0, 5, 4], 40, 8))
    assert torch.equal(got, whole_logits[32:])


def test_nothing_wanted_fills_the_cache(root: Path):
    network, tokens = network_of("qwen3", root), some_tokens(40)
    runner = NativeRunner(network, 8, BLOCK)
    [expected] = step(runner, whole(tokens, [0, 1, 2]))
    assert step(runner, Span(tokens[:30], 0, [4, 3, 6], 40, 0))[0].shape == (0, 400)
    [got] = step(runner, Span(tokens[30:], 30, [4, 3, 6], 40, 10))
    assert torch.equal(got, expected[30:])


def test_garbage_in_unwritten_slots_is_never_read(root: Path):
    for case in ("qwen3", "gemma2", "gpt_oss"):
        network, tokens = network_of(case, root), some_tokens(37)
        runner = NativeRunner(network, 4, BLOCK)
        [expected] = step(runner, whole(tokens, [0, 1, 2]))
        runner._cache.keys.fill_(255)
        runner._cache.values.fill_(255)
        assert torch.equal(in_pieces(runner, tokens, [3, 1, 0], 9), expected)


def test_tokens_outside_the_vocabulary_are_refused(root: Path):
    runner = NativeRunner(network_of("llama", root), 2, BLOCK)
    for token in (-1, 400):
        with pytest.raises(IndexError, match="vocabulary"):
            step(runner, whole([5, token], [0]))
