"""Speculation, one request at a time: seconds with each proposer over seconds without, same tokens out.

The texts are real (texts.py), the models are made to write them (writers.py). The lookup gains what the texts repeat;
the draft model is right at about four of five positions, by construction. Where there is nothing to gain, the
engine must notice: a text without repetitions for the lookup, a draft that has never seen the text for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.engine.contest import interleaved
from benchmarks.engine.report import Ratio, finish
from benchmarks.engine.texts import tasks
from benchmarks.engine.writers import encoded, tokenizer, writer

if TYPE_CHECKING:
    from gristmill.engine import Engine

NEW = 160  # tokens of each answer; all of them must fit the target's 768 dimensions
TARGET, DRAFT = (12, 768), (2, 256)
RIGHT = 0.8  # of the draft's positions
NO_HELP = 0.97
CACHE = 2048  # tokens: five engines are held, and the default is for 64 full contexts
PLAIN, LOOKUP, MODEL, BAD = "plain", "lookup", "draft model", "bad draft model"


def run(rounds: int, place: Path) -> dict[str, Any]:
    from gristmill.engine import Engine

    tokens = tokenizer()
    kinds = [task.kind for task in tasks()]
    script = dict(zip(kinds, encoded(tasks(), tokens, NEW), strict=True))
    target = writer(*TARGET, tokens, list(script.values()))
    draft = writer(*DRAFT, tokens, list(script.values()), RIGHT)
    bad = writer(*DRAFT, tokens, [([0], [0])])
    engines = {
        PLAIN: Engine(target, prefix_caching=False, cache_tokens=CACHE),
        LOOKUP: Engine(target, prefix_caching=False, cache_tokens=CACHE, draft="ngram"),
        MODEL: Engine(target, prefix_caching=False, cache_tokens=CACHE, draft=draft),
        BAD: Engine(target, prefix_caching=False, cache_tokens=CACHE, draft=bad),
    }
    small = Engine(draft, prefix_caching=False, cache_tokens=CACHE)
    sides: dict[str, Callable[[], float]] = {
        f"{who}: {kind}": partial(decoding, engine, *one)
        for kind, one in script.items()
        for who, engine in engines.items()
    }
    sides["the draft model alone"] = partial(decoding, small, *script["edit"], check=False)
    runs = interleaved(sides, rounds)
    medians = {name: median(values) for name, values in runs.items()}
    helped = [kind for kind in kinds if kind != "no help"]

    def gain(who: str, some: list[str]) -> float:
        plain, with_ = (sum(medians[f"{w}: {kind}"] for kind in some) for w in (PLAIN, who))
        return plain / with_

    ratios = [
        *[Ratio(f"lookup: {kind}, speedup", gain(LOOKUP, [kind]), 2) for kind in helped],
        Ratio("lookup: all three, speedup", gain(LOOKUP, helped), 2),
        Ratio("lookup: no help, speedup", gain(LOOKUP, ["no help"]), NO_HELP),
        Ratio("draft model: all four, speedup", gain(MODEL, kinds), 1.8),
        Ratio("bad draft model: all four, speedup", gain(BAD, kinds), NO_HELP),
        Ratio(
            "the draft's cost a token / the target's",
            medians["the draft model alone"] / medians[f"{PLAIN}: edit"],
            0.1,
            at_most=True,
        ),
    ]
    acceptance = {who: record(engine) for who, engine in engines.items() if who != PLAIN}
    for who, found in acceptance.items():
        print(
            f"  {who}: {found['accepted_per_examined']:.3f} of the drafts examined were accepted,",
            end=" ",
        )
        print(f"{found['tokens_per_step']:.2f} tokens a step")
    return finish(
        ratios,
        "s",
        runs,
        {"runner": engines[PLAIN].runner_name, "target": TARGET, "draft": DRAFT, "right": RIGHT},
        acceptance=acceptance,
        prompt_tokens={kind: len(prompt) for kind, (prompt, _) in script.items()},
        new_tokens={kind: len(answer) for kind, (_, answer) in script.items()},
    )


def decoding(engine: Engine, prompt: list[int], answer: list[int], check: bool = True) -> float:
    """Seconds from the first token of the answer to its last; a draft model's reading of the prompt is among them."""
    from gristmill.lm import Request, SamplingParams

    params = SamplingParams(max_tokens=len(answer), temperature=0.0, ignore_eos=True)
    chunks = engine.stream(Request(token_ids=prompt, params=params))
    chunk = next(chunks)
    start = perf_counter()
    for chunk in chunks:  # noqa: B007 - the last one is asked
        pass
    taken = perf_counter() - start
    if check and (chunk.completion is None or list(chunk.completion.token_ids) != answer):
        raise RuntimeError("the engine did not write the model's answer")
    return taken


def record(engine: Engine) -> dict[str, float]:
    stats = engine.stats
    return {
        "accepted_per_examined": stats.spec_accepted_per_examined,
        "drafted": stats.spec_drafted,
        "examined": stats.spec_examined,
        "accepted": stats.spec_accepted,
        "tokens_per_step": stats.generated / stats.steps,
    }
