"""64 requests of mixed length at once: output tokens a second, beside vLLM and beside one at a time.

transformers would need minutes for all 64, so it gets every 16th by length, and its tokens a second stand for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from benchmarks.engine import models, side_vllm
from benchmarks.engine.contest import Answer, Contestant, agreement, interleaved
from benchmarks.engine.protocol import Requests
from benchmarks.engine.report import Ratio, finish

REQUESTS, SUBSET = 64, 4
PROMPT, NEW = (64, 512), (64, 256)
CACHE = str(REQUESTS * (PROMPT[1] + NEW[1]))  # tokens: all of them at once
ALONE = "transformers float32, one at a time"


def run(rounds: int, place: Path) -> dict[str, Any]:
    model = models.written(place, "134M")
    requests = mixed(models.shape("134M").vocab_size)
    by_length = sorted(requests, key=lambda request: len(request[0]) + request[1])
    subset = by_length[REQUESTS // SUBSET // 2 :: REQUESTS // SUBSET]
    asked: dict[str, Requests] = {}
    answers: dict[str, list[Answer]] = {}
    about: dict[str, Any] = {}
    # One type after the other: the caches of all five would not fit beside each other in 16 GB.
    for dtype in ("float32", "bfloat16"):
        with ExitStack() as stack:
            sides = {
                name: stack.enter_context(contestant)
                for name, contestant in contestants(model, dtype)
            }
            for name, contestant in sides.items():
                asked[name] = subset if name == ALONE else requests
                about[name] = contestant.about
                # Enough to warm up, and far quicker than all of them.
                contestant([(ids, 8) for ids, _ in by_length[:8]])
            answers |= interleaved(
                {name: partial(side, asked[name]) for name, side in sides.items()},
                rounds,
                warm_up=False,
            )
    runs = {
        name: [output_tokens(asked[name]) / answer.seconds for answer in found]
        for name, found in answers.items()
    }
    for name, found in answers.items():
        check(name, asked[name], found)
    tokens = {name: median(values) for name, values in runs.items()}
    ours, ours_16 = tokens["ours float32"], tokens["ours bfloat16"]
    alone = tokens[ALONE]
    ratios = [
        Ratio("float32: ours / vLLM", ours / tokens["vLLM float32"], 1.2),
        Ratio("bfloat16: ours / vLLM", ours_16 / tokens["vLLM bfloat16"]),
        Ratio(
            f"float32: ours / transformers one at a time (on {SUBSET} of them)", ours / alone, 10
        ),
    ]
    same = agreement(answers["ours float32"][0], answers["vLLM float32"][0])
    print(f"  {REQUESTS} requests, {sum(len(ids) for ids, _ in requests):,} tokens in,", end=" ")
    print(
        f"{output_tokens(requests):,} out; equal to vLLM's before the first other one: {same:.1%}"
    )
    return finish(
        ratios,
        "tokens/s",
        runs,
        about,
        requests=REQUESTS,
        prompt_tokens=[len(ids) for ids, _ in requests],
        new_tokens=[count for _, count in requests],
        one_at_a_time_on=[[len(ids), count] for ids, count in subset],
        same_as_vllm=same,
    )


def contestants(model: Path, dtype: str) -> Iterator[tuple[str, Contestant]]:
    """One by one, as each has loaded."""
    yield f"ours {dtype}", Contestant("side_ours", model, dtype, CACHE)
    python, environment = side_vllm.HOME / "bin/python", side_vllm.ENVIRONMENT
    yield (
        f"vLLM {dtype}",
        Contestant("side_vllm", model, dtype, python=python, environment=environment),
    )
    if dtype == "float32":
        yield ALONE, Contestant("side_transformers", model, dtype)


def mixed(vocab_size: int) -> Requests:
    draw = Random(0)
    lengths = [(draw.randint(*PROMPT), draw.randint(*NEW)) for _ in range(REQUESTS)]
    return [(models.random_prompt(draw, length, vocab_size), new) for length, new in lengths]


def output_tokens(requests: Requests) -> int:
    return sum(count for _, count in requests)


def check(name: str, requests: Requests, answers: list[Answer]) -> None:
    for answer in answers:
        if answer.tokens and [len(made) for made in answer.tokens] != [n for _, n in requests]:
            raise RuntimeError(f"{name} did not give every request the tokens it asked for")
