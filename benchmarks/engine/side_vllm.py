"""Contestant: vLLM for CPUs, with its defaults (its compiled mode is the faster one) and 64 rows.

Its Python is .venv-peers/vllm (`make peers`), so nothing of ours is imported. ENVIRONMENT is part of what a user
has to know: left alone, it keeps one of two cores to itself and was 1.65 times slower.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.engine.protocol import Generate, Requests, serve

HOME = Path(".venv-peers/vllm").absolute()
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB
    "VLLM_CACHE_ROOT": str(HOME / "cache"),
    "VLLM_LOGGING_LEVEL": "WARNING",
    "LD_PRELOAD": str(HOME / "lib/libiomp5.so"),  # as its installation page asks
}


def load() -> tuple[Generate, dict[str, Any]]:
    vllm: Any = import_module("vllm")

    path, dtype = sys.argv[1:3]
    model = vllm.LLM(
        path,
        dtype=dtype,
        skip_tokenizer_init=True,
        max_model_len=1024,
        max_num_seqs=64,
        enable_prefix_caching=False,
    )

    def generate(requests: Requests) -> list[list[int]]:
        answers = model.generate(
            [{"prompt_token_ids": ids} for ids, _ in requests],
            [
                vllm.SamplingParams(
                    max_tokens=count, temperature=0.0, ignore_eos=True, detokenize=False
                )
                for _, count in requests
            ],
            use_tqdm=False,
        )
        return [list(answer.outputs[0].token_ids) for answer in answers]

    return generate, {"vllm": vllm.__version__, "dtype": dtype}


if __name__ == "__main__":
    serve(load)
