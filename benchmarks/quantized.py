"""Quantized models beside llama.cpp on the same GGUF files, and matrix products beside PyTorch's 8 and 4 bits.

    python -m benchmarks.quantized [--sizes 134M 551M] [--types Q4_0 Q8_0 Q4_K_M] [--threads 2 1] [--rounds N]

Random weights; both sides round activations to 8 bits. Decoding's seconds are those of 1 + N new tokens less those of
1; prefill is 512 tokens and one. The wheel of xllamacpp is built for AVX2, so ours is timed with its own AVX2 code too.
Contestants take turns in processes of their own, the others stopped; medians count. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.engine import models
from benchmarks.engine.contest import Contestant, interleaved
from benchmarks.engine.report import Ratio, finish
from benchmarks.engine.single import memory_read
from gristmill import kernels
from gristmill.files import read_object, write_json
from gristmill.kernels import Codes, QuantizedLinear

PROMPT, NEW, LONG = 128, {"10M": 256, "134M": 96, "551M": 48}, 512
CACHE = "1024"
COLD_BYTES = 128 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantized",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", default=["134M", "551M"])
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q8_0", "Q4_K_M"])
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/quantized.json"))
    options = parser.parse_args()
    sets = kernels.instruction_sets()
    record = read_object(options.out) if options.out.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(os.environ.get("GRISTMILL_BENCHMARK_MODELS", temporary))
        for size in options.sizes:
            for type in options.types:
                for threads in options.threads:
                    title = f"{size} {type}, {threads} thread(s)"
                    print(f"{title}:", flush=True)
                    record[title] = models_beside(place, size, type, threads, sets, options.rounds)
    for threads in options.threads:
        title = f"one row, {threads} thread(s)"
        print(f"{title}:", flush=True)
        record[title] = products(threads, options.rounds)
    record["machine"] = {"processor": platform.processor(), "instruction_sets": sets}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, record)


def models_beside(
    place: Path, size: str, type: str, threads: int, sets: tuple[str, ...], rounds: int
) -> dict[str, Any]:
    """One file, ours at each vector instruction set and llama.cpp's."""
    file = models.written_gguf(place, size, type)
    with ExitStack() as stack:

        def side(module: str, *arguments: str | Path) -> Contestant:
            return stack.enter_context(Contestant(f"side_{module}", *arguments))

        sides = {
            f"ours {name}": side("ours", file, "auto", CACHE, str(threads), name)
            for name in sets[1:]
        }
        sides["llama.cpp"] = side("llamacpp", file, str(threads))
        runs: dict[str, Callable[[], float]] = {}
        for name, contestant in sides.items():
            runs[f"{name} decode"] = partial(decoding, contestant, size)
            runs[f"{name} prefill"] = partial(prefill, contestant, size)
        runs["memory read, bytes/s"] = memory_read
        found = interleaved(runs, rounds)
        about = {name: contestant.about for name, contestant in sides.items()}
    read = found.pop("memory read, bytes/s")
    speed = {name: median(values) for name, values in found.items()}
    best, roofline = sets[-1], median(read) / file_bytes(file, size)
    ratios = [
        Ratio(
            f"{what}: ours {name} / llama.cpp",
            speed[f"ours {name} {what}"] / speed[f"llama.cpp {what}"],
            1,
        )
        for what in ("decode", "prefill")
        for name in sets[1:]
    ]
    goal = 0.85 if size == "551M" and threads > 1 else None
    ratios.append(
        Ratio(
            "decode: ours / what the memory allows", speed[f"ours {best} decode"] / roofline, goal
        )
    )
    return finish(ratios, "tokens/s", found, about, memory_read_bytes_per_second=read)


def file_bytes(file: Path, size: str) -> float:
    """What a token reads of the file: all but the embedding's other rows."""
    from gristmill.formats.gguf import GGUFFile

    tensors = GGUFFile.open(file).tensors
    return sum(t.nbytes for name, t in tensors.items() if name != "token_embd.weight")


def decoding(contestant: Contestant, size: str) -> float:
    """Tokens a second."""
    prompt = models.random_prompt(Random(size), PROMPT, models.shape(size).vocab_size)
    first = contestant([(prompt, 1)]).seconds
    return NEW[size] / (contestant([(prompt, 1 + NEW[size])]).seconds - first)


def prefill(contestant: Contestant, size: str) -> float:
    """Tokens a second."""
    prompt = models.random_prompt(Random(size + "long"), LONG, models.shape(size).vocab_size)
    return LONG / contestant([(prompt, 1)]).seconds


def products(threads: int, rounds: int) -> dict[str, Any]:
    """A decoding step's product, weights out of the cache: microseconds a call."""
    torch.set_num_threads(threads)
    out, width = 2048, 2048
    copies = max(2, COLD_BYTES // (out * width))
    x = torch.randn(1, width)
    runs: dict[str, Callable[[], float]] = {}
    for bits in (8, 4):
        codes = Codes(
            torch.randint(0, 2**bits, (out, width), dtype=torch.uint8),
            torch.rand(out, width // 128, dtype=torch.float32).half(),
            torch.full((out, width // 128), 2 ** (bits - 1), dtype=torch.uint8),
            bits,
            128,
        )
        layers = [QuantizedLinear.from_codes(codes) for _ in range(copies)]
        runs[f"ours int{bits}"] = partial(timed, [partial(layer, x) for layer in layers])
    half = x.bfloat16()
    scales = torch.rand(out).bfloat16()
    whole = [torch.randint(-127, 127, (out, width), dtype=torch.int8) for _ in range(copies)]
    runs["torch int8"] = partial(
        timed, [partial(torch._weight_int8pack_mm, half, w, scales) for w in whole]
    )
    packed = [
        torch._convert_weight_to_int4pack_for_cpu(
            torch.randint(0, 16, (out, width), dtype=torch.int32), 1
        )
        for _ in range(copies)
    ]
    zeros = torch.rand(width // 128, out, 2).bfloat16()
    runs["torch int4"] = partial(
        timed,
        [partial(torch._weight_int4pack_mm_for_cpu, half, w, 128, zeros) for w in packed],
    )
    found = interleaved(runs, rounds)
    time = {name: median(values) for name, values in found.items()}
    ratios = [
        Ratio(f"int{bits}: torch / ours", time[f"torch int{bits}"] / time[f"ours int{bits}"], 1.5)
        for bits in (8, 4)
    ]
    return finish(ratios, "microseconds", found, {"out": out, "in": width, "copies": copies})


def timed(calls: list[Callable[[], Any]], count: int = 200) -> float:
    """Microseconds a call; each takes another copy of the weights."""
    begun = perf_counter()
    for _, call in zip(range(count), cycle(calls), strict=False):
        call()
    return (perf_counter() - begun) / count * 1e6


if __name__ == "__main__":
    main()
