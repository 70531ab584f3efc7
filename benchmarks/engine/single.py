"""One request at a time: how near decoding comes to the memory's speed, and to the peers.

Decoding's seconds are those of 1 + N new tokens less those of 1, so a prompt's reading and whatever else a call
costs cancel. The roofline counts the weights and the keys and values that a token has to read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from benchmarks.engine import models
from benchmarks.engine.contest import Contestant, agreement, interleaved
from benchmarks.engine.report import Ratio, finish

PROMPT, CACHE = (
    128,
    "1024",
)  # tokens; the engine's own choice is for 64 requests, and several engines are held here
NEW = {"134M": 128, "10M": 384}  # the small one is so fast that 128 would be a blink


def run(rounds: int, place: Path) -> dict[str, Any]:
    large, small = models.written(place, "134M"), models.written(place, "10M")
    gguf = models.written_gguf(place, "134M", "F16")
    with ExitStack() as stack:

        def side(module: str, *arguments: str | Path) -> Contestant:
            return stack.enter_context(Contestant(f"side_{module}", *arguments))

        sides = {
            "ours 134M float32": side("ours", large, "float32", CACHE),
            "ours 134M float16": side("ours", gguf, "auto", CACHE),
            "ours 134M bfloat16": side("ours", large, "bfloat16", CACHE),
            "transformers 134M float32": side("transformers", large, "float32"),
            "llama.cpp 134M F16": side("llamacpp", gguf),
            "ours 10M float32": side("ours", small, "float32", CACHE),
            "transformers 10M float32": side("transformers", small, "float32"),
        }
        same = {
            size: agreement(
                sides[f"ours {size} float32"](question(size, 32)),
                sides[f"transformers {size} float32"](question(size, 32)),
            )
            for size in NEW
        }
        runs: dict[str, Callable[[], float]] = {
            name: partial(speed, contestant, size=name.split()[1])
            for name, contestant in sides.items()
        }
        runs["memory read, bytes/s"] = memory_read
        speeds = interleaved(runs, rounds)
        about = {name: contestant.about for name, contestant in sides.items()}
    bandwidth = speeds.pop("memory read, bytes/s")
    tokens = {name: median(values) for name, values in speeds.items()}
    config = models.shape("134M")
    middle = PROMPT + NEW["134M"] / 2
    bytes_32 = models.weight_bytes_per_token(config, 4) + models.cache_bytes_per_token(
        config, middle, 4
    )
    roofline = median(bandwidth) / bytes_32
    ours = {kind: tokens[f"ours 134M {kind}"] for kind in ("float32", "float16", "bfloat16")}
    peer = tokens["transformers 134M float32"]
    ratios = [
        Ratio("134M float32: ours / what the memory allows", ours["float32"] / roofline),
        Ratio("134M float32: ours / transformers", ours["float32"] / peer),
        Ratio("134M: ours at float16 / transformers at float32", ours["float16"] / peer, 3.5),
        Ratio("134M float16: ours / llama.cpp", ours["float16"] / tokens["llama.cpp 134M F16"], 1),
        Ratio(
            "10M float32: ours / transformers",
            tokens["ours 10M float32"] / tokens["transformers 10M float32"],
            5,
        ),
    ]
    read = median(bandwidth) / 1e9
    print(f"  memory read {read:.1f} GB/s: at most {roofline:.1f} tokens/s at float32")
    print(f"  equal tokens before the first other one, ours and transformers: {same}")
    return finish(
        ratios,
        "tokens/s",
        speeds,
        about,
        prompt_tokens=PROMPT,
        new_tokens=NEW,
        memory_read_bytes_per_second=bandwidth,
        bytes_per_token_float32=bytes_32,
        roofline_tokens_per_second=roofline,
        same_as_transformers=same,
    )


def memory_read() -> float:
    """Bytes a second: the ceiling of decoding alone, which reads every weight for every token."""
    import torch

    from gristmill.engine.measure import read_bandwidth

    return read_bandwidth(torch.device("cpu"), seconds=1.5)


def speed(contestant: Contestant, size: str) -> float:
    """Tokens a second."""
    first = contestant(question(size, 1)).seconds
    return NEW[size] / (contestant(question(size, 1 + NEW[size])).seconds - first)


def question(size: str, count: int) -> list[tuple[list[int], int]]:
    prompt = models.random_prompt(Random(size), PROMPT, models.shape(size).vocab_size)
    return [(prompt, count)]
