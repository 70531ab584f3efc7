"""What it costs that a row's bits depend on no other row: our fixed-order kernels beside PyTorch's GEMM.

The same engine, the same requests: runner "native" and runner "torch".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.engine import models
from benchmarks.engine.contest import interleaved
from benchmarks.engine.report import Ratio, finish

if TYPE_CHECKING:
    from gristmill.engine import Engine

PREFILL, ROWS, NEW = 512, (1, 8, 32), 32
CACHE = 4096  # tokens: two engines are held, and the default is for 64 full contexts
RUNNERS: tuple[Literal["native", "torch"], ...] = ("native", "torch")


def run(rounds: int, place: Path) -> dict[str, Any]:
    import torch

    from gristmill.engine import Engine
    from gristmill.formats import Model

    model = Model.load(models.written(place, "134M"))
    vocab_size = model.config.vocab_size
    sides: dict[str, Callable[[], float]] = {}
    for kind in RUNNERS:
        engine = Engine(model, prefix_caching=False, cache_tokens=CACHE, runner=kind)
        sides[f"{kind}: prefill of {PREFILL}"] = partial(prefill, engine, vocab_size)
        for rows in ROWS:
            sides[f"{kind}: decoding {rows} row(s)"] = partial(decoding, engine, rows, vocab_size)
    runs = interleaved(sides, rounds)
    works = [name.removeprefix("native: ") for name in runs if name.startswith("native")]
    ratios = [Ratio(f"{work}: native / torch (tokens/s)", _quotient(runs, work)) for work in works]
    return finish(ratios, "tokens/s", runs, {"torch": torch.__version__, "model": "134M float32"})


def _quotient(runs: dict[str, list[float]], work: str) -> float:
    return median(runs[f"native: {work}"]) / median(runs[f"torch: {work}"])


def prefill(engine: Engine, vocab_size: int) -> float:
    return PREFILL / seconds(engine, 1, PREFILL, 1, vocab_size)


def decoding(engine: Engine, rows: int, vocab_size: int) -> float:
    one = seconds(engine, rows, 16, 1, vocab_size)
    return rows * NEW / (seconds(engine, rows, 16, 1 + NEW, vocab_size) - one)


def seconds(engine: Engine, rows: int, prompt: int, new: int, vocab_size: int) -> float:
    from gristmill.lm import Request, SamplingParams

    params = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
    draw = Random(rows)
    requests = [
        Request(token_ids=models.random_prompt(draw, prompt, vocab_size), params=params)
        for _ in range(rows)
    ]
    start = perf_counter()
    engine.generate(requests)
    return perf_counter() - start
