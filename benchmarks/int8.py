"""One decoding step's matrix product, 8-bit weights: our kernel against PyTorch's.

    python -m benchmarks.int8 [--threads N] [--rounds N] [--rows N]

Peers: `F.linear` on float32 weights (four times the bytes), and `torch._weight_int8pack_mm` (the same bytes,
bfloat16 activations). All are timed in turn, round after round, so that a busy moment hits all of them alike;
the median round counts. Each call works on another of several copies of its matrix, 64 MB together, because
in a real model the weights of one layer have left the cache when it is their turn again.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F

from gristmill import kernels
from gristmill.files import write_json

SHAPES = [(2048, 2048), (1024, 256), (256, 1024)]
COLD_BYTES = 64 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--rows", type=int, default=1, help="rows of activations (1 = decoding alone)"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/int8.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    kernel = str(kernels.describe()[0])
    print(f"{kernel}; torch {torch.__version__}, {options.threads} threads, {options.rows} row(s)")
    print(
        f"{'out x in':>12} {'ours':>9} {'GB/s':>6} {'float32':>17} {'int8pack_mm':>17} {'our twin':>17}"
    )
    results = []
    for shape in SHAPES:
        micros = measure(*shape, options.rows, options.rounds)
        ours = micros["ours"]
        rate = shape[0] * shape[1] / ours / 1e3
        others = " ".join(
            f"{micros[name]:9.1f} ({micros[name] / ours:4.1f}x)"
            for name in ("float32", "int8pack", "twin")
        )
        print(f"{shape[0]:>5} x {shape[1]:<4} {ours:9.1f} {rate:6.1f} {others}")
        results.append({"out": shape[0], "in": shape[1], "microseconds": micros})
    print("microseconds a call, and in brackets how many times longer than ours")
    write_json(
        options.out,
        {
            "kernel": kernel,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": options.threads,
            "rows": options.rows,
            "results": results,
        },
    )


def measure(out: int, in_: int, rows: int, rounds: int) -> dict[str, float]:
    """Median microseconds a call of every contestant."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, in_, generator=g)
    x_half = x.bfloat16()

    def copies(bytes_each: int) -> range:
        return range(max(1, COLD_BYTES // bytes_each))

    weight = torch.randint(-127, 128, (out, in_), dtype=torch.int8, generator=g)
    scale = torch.rand(out, 1, generator=g) / 127
    scale_half = scale.view(-1).bfloat16()
    int8 = cycle([weight.clone() for _ in copies(out * in_)])
    float32 = cycle([weight * scale for _ in copies(4 * out * in_)])
    contestants: dict[str, Callable[[], object]] = {
        "ours": lambda: kernels.int8_linear(x, next(int8), scale),
        "float32": lambda: F.linear(x, next(float32)),
        "int8pack": lambda: torch._weight_int8pack_mm(x_half, next(int8), scale_half),
        "twin": lambda: kernels.int8_linear_torch(x, next(int8), scale),
    }
    calls = max(8, 2**26 // (out * in_ * rows) // 4)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, call in contestants.items():
            start = perf_counter()
            for _ in range(calls):
                call()
            if round_ > 0:  # the first warms up
                times[name].append((perf_counter() - start) / calls * 1e6)
    return {name: median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
