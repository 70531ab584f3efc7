"""32 requests that begin alike, 1,000 tokens long: time to the first token with prefix caching and without.

The first request of a round finds nothing and is left out of the hits; without caching all requests take the
same, so a few of them are enough. Every round has a new prefix.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from statistics import mean, median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.engine import models
from benchmarks.engine.report import Ratio, finish

if TYPE_CHECKING:
    from gristmill.engine import Engine

PREFIX, OWN, REQUESTS, WITHOUT = 1000, 16, 32, 4
CACHE = 8192  # tokens: two engines are held, and the default is for 64 full contexts


def run(rounds: int, place: Path) -> dict[str, Any]:
    from gristmill.engine import Engine
    from gristmill.formats import Model

    model = Model.load(models.written(place, "134M"))
    caching, plain = (
        Engine(model, prefix_caching=True, cache_tokens=CACHE),
        Engine(model, prefix_caching=False, cache_tokens=CACHE),
    )
    vocab_size = model.config.vocab_size
    runs: dict[str, list[float]] = {"first request": [], "hits": [], "without caching": []}
    for round_ in range(rounds + 1):
        draw = Random(round_)
        prefix = models.random_prompt(draw, PREFIX, vocab_size)
        prompts = [prefix + models.random_prompt(draw, OWN, vocab_size) for _ in range(REQUESTS)]
        cold, *hits = [first_token(caching, prompt) for prompt in prompts]
        without = [first_token(plain, prompt) for prompt in prompts[:WITHOUT]]
        if round_ > 0:  # the first warms up
            for name, value in zip(runs, (cold, mean(hits), mean(without)), strict=True):
                runs[name].append(value)
    stats = caching.stats
    print(f"  {stats.prefix_cache_hits / stats.prefix_cache_queries:.1%} of all prompt tokens hit")
    with_caching = median(runs["hits"]) / median(runs["without caching"])
    ratios = [Ratio("time to first token, hits / without caching", with_caching, 1 / 8, True)]
    return finish(
        ratios,
        "s",
        runs,
        {"runner": caching.runner_name},
        prefix_tokens=PREFIX,
        own_tokens=OWN,
        requests=REQUESTS,
        requests_without=WITHOUT,
    )


def first_token(engine: Engine, prompt: list[int]) -> float:
    from gristmill.lm import Request, SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    start = perf_counter()
    engine.generate([Request(token_ids=prompt, params=params)])
    return perf_counter() - start
