"""The engine without a server, kept as busy as the clients keep it: output tokens a second, and every answer.

python -m benchmarks.serve.alone MODEL PLAN.json RESULT.json
"""

from __future__ import annotations

import json
import sys
from time import perf_counter

from gristmill.engine import Engine, Generation
from gristmill.formats import Model
from gristmill.lm import Request, SamplingParams


def run(engine: Engine, plan: dict) -> dict:
    """As many requests under way as there are clients, for so many seconds; those begun are finished."""
    prompts, turn = plan["prompts"], 0
    texts: dict[int, str] = {}
    numbers: dict[Generation, int] = {}
    tokens, start = 0, perf_counter()

    def begin() -> None:
        nonlocal turn
        prompt, count = prompts[turn % len(prompts)]
        params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
        generation = engine.prepare(Request(prompt, params))
        numbers[generation] = turn % len(prompts)
        engine.add(generation)
        turn += 1

    for _ in range(plan["clients"]):
        begin()
    while numbers:
        for generation, chunk in engine.step():
            if chunk.completion is None:
                continue
            texts[numbers.pop(generation)] = chunk.completion.text
            tokens += len(chunk.completion.token_ids)
            if perf_counter() - start < plan["seconds"]:
                begin()
    return {"seconds": perf_counter() - start, "tokens": tokens, "texts": texts}


if __name__ == "__main__":
    model, given, out = sys.argv[1:]
    with open(given) as file:
        wanted = json.load(file)
    engine = Engine(Model.load(model))
    run(engine, wanted | {"seconds": 1})  # warm
    result = run(engine, wanted)
    with open(out, "w") as file:
        json.dump(result, file)
