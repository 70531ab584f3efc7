"""The native runner against our torch network, which is held to transformers elsewhere; and its bits against itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gristmill import kernels
from gristmill.engine.native import NativeRunner
from gristmill.engine.ragged import Span, ragged
from gristmill.formats import load_network
from gristmill.model import Transformer
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
