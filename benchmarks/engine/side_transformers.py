"""Contestant: `model.generate` of transformers, greedy, one request at a time.

Its default cache: the static one was as fast here within noise (26.5 and 24.7, 23.5 and 25.2 tokens/s).
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.engine.protocol import Generate, Requests, serve


def load() -> tuple[Generate, dict[str, Any]]:
    import torch
    import transformers

    path, dtype = sys.argv[1:3]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    model.generation_config.eos_token_id = None  # exactly as many tokens as asked for

    def generate(requests: Requests) -> list[list[int]]:
        made = []
        for ids, count in requests:
            prompt = torch.tensor([ids])
            with torch.inference_mode():
                row = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=count,
                    do_sample=False,
                    pad_token_id=0,
                )[0]
            made.append(row[len(ids) :].tolist())
        return made

    return generate, {"transformers": transformers.__version__, "dtype": dtype}


if __name__ == "__main__":
    serve(load)
