"""Contestant: llama.cpp, in process through xllamacpp, as it comes: f16 cache, one request at a time.

`python -m benchmarks.engine.side_llamacpp FILE [THREADS]`
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

from benchmarks.engine.protocol import Generate, Requests, serve


def load() -> tuple[Generate, dict[str, Any]]:
    xllamacpp: Any = import_module("xllamacpp")  # without type information

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel = 1024, 1
    threads = int(sys.argv[2]) if sys.argv[2:] else os.cpu_count()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def generate(requests: Requests) -> None:
        for ids, count in requests:
            question = {"prompt": ids, "max_tokens": count, "temperature": 0}
            answer = server.handle_completions(
                question | {"ignore_eos": True, "cache_prompt": False}
            )
            done = answer["usage"]
            if done["completion_tokens"] != count or done["prompt_tokens"] != len(ids):
                raise RuntimeError(f"llama.cpp did other work than was asked for: {done}")

    return generate, {"xllamacpp": version("xllamacpp"), "file": os.path.basename(sys.argv[1])}


if __name__ == "__main__":
    serve(load)
