"""Contestant: our engine. `… side_ours MODEL DTYPE CACHE_TOKENS [THREADS [INSTRUCTION_SET]]`."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.engine.protocol import Generate, Requests, serve


def load() -> tuple[Generate, dict[str, Any]]:
    import torch

    from gristmill.engine import Engine
    from gristmill.formats import Model
    from gristmill.lm import Request, SamplingParams

    path, dtype, cache_tokens, *more = sys.argv[1:]
    if more:
        torch.set_num_threads(int(more[0]))
    # The rounds ask the same again, and nobody may remember it.
    model = Model.load(path, dtype=dtype)
    engine = Engine(model, prefix_caching=False, cache_tokens=int(cache_tokens))
    if more[1:]:
        engine.runner._isa = more[1]  # type: ignore[attr-defined] - as on a machine that has no wider one
        engine.runner.refresh()

    def generate(requests: Requests) -> list[list[int]]:
        asked = [
            Request(
                token_ids=ids,
                params=SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True),
            )
            for ids, count in requests
        ]
        return [list(answer.token_ids) for answer in engine.generate(asked)]

    return generate, {"runner": engine.runner_name, "dtype": dtype, "torch": torch.__version__}


if __name__ == "__main__":
    serve(load)
