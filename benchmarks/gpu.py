"""Kernels for GPUs on a GPU: each against its twin, then its time beside PyTorch's.

    PYTHONPATH=src python -m benchmarks.gpu [--rounds N] [-o benchmarks/results/gpu.json]

Linear layers have Llama-3-8B's shapes and take turns with bf16's F.linear, weights out of the cache; attention has its
heads, beside scaled_dot_product_attention over the same keys in one piece; a decoding step is that of a random model
of 1.2B parameters, as int4 in groups of 128 and in bf16. The share of the bandwidth is bytes that must be read, by the
time, by what a copy moves. Medians count. Needs no native extension. Without a CUDA GPU it ends with exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.files import write_json
from gristmill.kernels import (
    Codes,
    Fp8Linear,
    Int8Linear,
    QuantizedLinear,
    describe,
    fp8_linear_torch,
    int8_linear_torch,
    triton,
)

# [out, in] of q and o, of k and v, of gate and up, of down.
SHAPES = [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)]
BATCHES = [1, 16, 64]
CONTEXTS = [(1, 1024), (1, 16384), (16, 4096), (64, 2048)]  # (rows, positions)
HEADS = (32, 8, 128)  # of queries, of keys and values, elements of each
COLD_BYTES = 256 << 20  # more than the second-level cache holds
BLOCK_SIZE = 16
CALLS = 50
TWIN_ERROR = {"coded": 0.01, "int8": 0.02, "fp8": 0.02, "attention": 0.02}  # of the largest output


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args()
    missing = triton.why_not(torch.device("cuda")) if torch.cuda.is_available() else "no CUDA GPU"
    if missing is not None:
        print(f"there is nothing to measure here: {missing}", file=sys.stderr)
        sys.exit(2)
    with torch.inference_mode():
        record = measure(options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, record)
    wrong = [check for check in record["checks"] if not check["met"]]
    if wrong:
        sys.exit(f"{len(wrong)} kernels do not agree with their twins")


def measure(rounds: int) -> dict[str, Any]:
    card = torch.cuda.get_device_name()
    record: dict[str, Any] = {"card": card, "torch": torch.__version__, "rounds": rounds}
    print(f"{card}, torch {torch.__version__}")
    for kernel in describe():
        print(f"  {kernel}")
    record["checks"] = checks()
    bandwidth = copy_bandwidth(rounds)
    record["copy_bytes_per_second"] = bandwidth
    print(f"a copy moves {bandwidth / 1e9:,.0f} GB/s")
    record["linear"] = linears(rounds, bandwidth)
    record["attention"] = attentions(rounds, bandwidth)
    try:
        record["decode"] = decoding(rounds)
    except ImportError as error:  # the engine needs packages that kernels do not
        print(f"no decoding step was timed: {error}")
    return record


def random_codes(out: int, width: int, bits: int, group: int) -> Codes:
    q = torch.randint(0, 2**bits, (out, width), dtype=torch.uint8)
    scale = (torch.rand(out, width // group) * 0.01 + 1e-3).half()
    zero = torch.randint(0, 2**bits, scale.shape, dtype=torch.uint8)
    return Codes(q, scale, zero, bits, group)


def int8_layer(out: int, width: int) -> Int8Linear:
    layer = Int8Linear(width, out)
    layer.weight = torch.randint(-127, 128, (out, width), dtype=torch.int8)
    layer.weight_scale = torch.rand(out, 1) * 0.001
    return layer.cuda()


def random_blocks(type: str, out: int, width: int) -> QuantizedLinear:
    """Any bytes of one of GGUF's types, but ordinary scales."""
    from gristmill.kernels.coded import CODINGS, block_bytes

    size = block_bytes(type)
    raw = torch.randint(0, 256, (out, width // CODINGS[type].record, size), dtype=torch.uint8)
    heads = {"Q6_K": [208], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2]}
    for at in heads.get(type, [0]):
        scales = (torch.rand(out, raw.shape[1], 1) * 0.01).half()
        raw[..., at : at + 2] = scales.view(torch.uint8)
    return QuantizedLinear.from_blocks(type, raw.flatten(1)).cuda()


def checks() -> list[dict[str, Any]]:
    """Every kernel against its twin on the GPU; the largest difference as a share of the largest output."""
    from gristmill.kernels.coded import CODINGS

    done = []

    def check(name: str, kind: str, y: Tensor, twin: Tensor) -> None:
        error = float((y.double() - twin.double()).abs().max() / twin.double().abs().max())
        met = error <= TWIN_ERROR[kind]  # not where it is not a number
        done.append({"what": name, "error": error, "met": met})
        print(f"  {name:48} {error:9.2e}{'' if met else '   WRONG'}", flush=True)

    layers = {type: random_blocks(type, 1040, 2048) for type in CODINGS if type[0] == "Q"}
    for bits in (4, 8):
        for group in (32, 128, 2048):
            codes = random_codes(1040, 2048, bits, group)
            layers[f"int{bits} g{group}"] = QuantizedLinear.from_codes(codes).cuda()
    layers["int4 of 50 inputs"] = QuantizedLinear.from_codes(random_codes(37, 50, 4, 50)).cuda()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for rows in (1, 2, 16, 17, 64, 200):
            short = f"{str(dtype).removeprefix('torch.')}, {rows} rows"
            for name, layer in layers.items():
                x = torch.randn(rows, layer.in_features, device="cuda", dtype=dtype)
                twin = F.linear(x.double(), layer.matrix(torch.float64))
                check(f"{name}, {short}", "coded", layer(x), twin)
            x = torch.randn(rows, 2000, device="cuda", dtype=dtype)
            eight = int8_layer(1000, 2000)
            twin = int8_linear_torch(x.double(), eight.weight, eight.weight_scale.double())
            check(f"int8 rows, {short}", "int8", eight(x), twin)
    for rows in (1, 17, 64):
        x, fp8 = torch.randn(rows, 2048, device="cuda").bfloat16(), fp8_layer(1040, 2048)
        twin = fp8_linear_torch(x.float(), fp8.weight, fp8.weight_scale)
        check(f"fp8, bfloat16, {rows} rows", "fp8", fp8(x), twin)
    for rows, length in ((1, 1), (3, 700), (16, 3000)):
        for window in (None, 300):
            by_us, _, twin = attention_sides(rows, length, window)
            name = f"attention, {rows} rows of {length}, window {window}"
            check(name, "attention", by_us(), twin())
    return done


def fp8_layer(out: int, width: int) -> Fp8Linear:
    return Fp8Linear(torch.randn(out, width) * 0.02).cuda()


def seconds(calls: Sequence[Callable[[], Any]], count: int = CALLS) -> float:
    """Of one call; each takes the next copy of the weights. By a CUDA graph, lest the time be Python's."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _, call in zip(range(count), cycle(calls), strict=False):
            call()
    graph.replay()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


def interleaved(sides: Mapping[str, Sequence[Callable[[], Any]]], rounds: int) -> dict[str, float]:
    """Median seconds of each side, which take turns."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, calls in sides.items():
            found[name].append(seconds(calls))
    return {name: median(values) for name, values in found.items()}


def copy_bandwidth(rounds: int) -> float:
    """Bytes read and written a second."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    time = median(seconds([partial(target.copy_, source)], 5) for _ in range(rounds))
    return 2 * source.numel() / time


def linears(rounds: int, bandwidth: float) -> list[dict[str, Any]]:
    print(
        f"{'linear':16}{'batch':>6}  "
        + "".join(f"{k:>24}" for k in ("int4", "int8 g128", "int8 rows", "fp8"))
    )
    print(" " * 24 + "times faster than bf16 (share of the bandwidth)")
    done = []
    for out, width in SHAPES:
        copies = COLD_BYTES // (out * width // 2) + 1
        kinds: dict[str, list[Any]] = {
            "int4": copied(QuantizedLinear.from_codes(random_codes(out, width, 4, 128)), copies),
            "int8 g128": copied(
                QuantizedLinear.from_codes(random_codes(out, width, 8, 128)), copies
            ),
            "int8 rows": copied(int8_layer(out, width), copies),
            "fp8": copied(fp8_layer(out, width), copies),
        }
        plain = torch.nn.Linear(width, out, bias=False, dtype=torch.bfloat16)
        kinds["bf16"] = copied(plain, max(2, copies // 4 + 1))
        for rows in BATCHES:
            x = torch.randn(rows, width, device="cuda").bfloat16()
            sides = {
                name: [partial(layer, x) for layer in layers] for name, layers in kinds.items()
            }
            time = interleaved(sides, rounds)
            moved = 2 * rows * (out + width)
            share = {
                name: (weight_bytes(kinds[name][0]) + moved) / time[name] / bandwidth
                for name in kinds
            }
            done.append(
                {"out": out, "in": width, "batch": rows, "seconds": time, "bandwidth": share}
            )
            cells = [f"{time['bf16'] / time[k]:14.2f}x ({share[k]:6.1%})" for k in list(kinds)[:-1]]
            print(
                f"{out:>6} x {width:<7}{rows:>6}  " + "".join(f"{c:>24}" for c in cells), flush=True
            )
    return done


def copied(layer: torch.nn.Module, copies: int) -> list[torch.nn.Module]:
    from copy import deepcopy

    return [deepcopy(layer).cuda().requires_grad_(False) for _ in range(copies)]


def weight_bytes(layer: torch.nn.Module) -> int:
    tensors = (*layer.parameters(), *layer.buffers())
    return sum(t.numel() * t.element_size() for t in tensors)


def attention_sides(rows: int, length: int, window: int | None) -> tuple[Callable[[], Tensor], ...]:
    """Paged attention, torch's over the same keys in one piece, and the twin in fp32; Llama-3-8B's heads."""
    from gristmill.kernels.triton.attention import paged_attention_triton

    heads, key_heads, size = HEADS
    blocks = -(-length // BLOCK_SIZE)
    q = torch.randn(rows, heads, size, device="cuda").bfloat16()
    keys, values = (
        torch.randn(rows * blocks * BLOCK_SIZE, key_heads, size, device="cuda").bfloat16()
        for _ in range(2)
    )
    tables = torch.randperm(rows * blocks, device="cuda").view(rows, blocks).int()
    positions = torch.full((rows,), length - 1, device="cuda")
    p = torch.arange(length, device="cuda")
    slots = tables[:, p // BLOCK_SIZE].long() * BLOCK_SIZE + p % BLOCK_SIZE
    k, v = (t[slots].transpose(1, 2).contiguous() for t in (keys, values))
    mask = None if window is None else (length - 1 - p < window)[None, None, None]
    scale = size**-0.5
    attend = partial(F.scaled_dot_product_attention, attn_mask=mask, scale=scale, enable_gqa=True)
    where = (tables, positions, length - 1, BLOCK_SIZE, scale, window)
    return (
        partial(paged_attention_triton, q, keys, values, *where),
        partial(attend, q[:, :, None], k, v),
        lambda: attend(q[:, :, None].float(), k.float(), v.float())[:, :, 0],
    )


def attentions(rounds: int, bandwidth: float) -> list[dict[str, Any]]:
    print("attention: times faster than torch's over keys in one piece (share of the bandwidth)")
    done = []
    for rows, length in CONTEXTS:
        ours, theirs, _ = attention_sides(rows, length, None)
        time = interleaved({"paged": [ours], "torch": [theirs]}, rounds)
        share = rows * length * HEADS[1] * HEADS[2] * 4 / time["paged"] / bandwidth
        done.append({"rows": rows, "positions": length, "seconds": time, "bandwidth": share})
        print(
            f"  {rows:3} rows of {length:6}: {time['torch'] / time['paged']:6.2f}x ({share:6.1%})"
        )
    return done


def decoding(rounds: int) -> list[dict[str, Any]]:
    """Steps of the engine's runner, Python and all: a CUDA graph does not fit its tables."""
    from gristmill.model import Linear, ModelConfig, Transformer, initialize

    config = ModelConfig(
        family="llama",
        vocab_size=32_000,
        hidden_size=2048,
        num_layers=20,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=7168,
        max_seq_len=4096,
    )
    plain = initialize(Transformer(config), seed=0).bfloat16().cuda()
    time: dict[int, dict[str, float]] = {batch: {} for batch in BATCHES}
    for batch in BATCHES:
        time[batch]["bf16"] = step_seconds(plain, batch, rounds)
    for block in plain.model.layers:
        for name, module in list(block.named_modules()):
            if isinstance(module, Linear):
                out, width = module.weight.shape
                made = QuantizedLinear.from_codes(random_codes(out, width, 4, 128)).cuda()
                parent, _, child = name.rpartition(".")
                setattr(block.get_submodule(parent), child, made)
    for batch in BATCHES:
        time[batch]["int4"] = step_seconds(plain, batch, rounds)
    print(f"a decoding step, {config.num_parameters / 1e9:.2f}B parameters, 512 positions each:")
    for batch, found in time.items():
        bf16, int4 = found["bf16"] * 1e3, found["int4"] * 1e3
        print(f"  {batch:3} rows: bf16 {bf16:7.2f} ms, int4 {int4:7.2f} ms, {bf16 / int4:5.2f}x")
    return [{"batch": batch, "seconds": found} for batch, found in time.items()]


def step_seconds(network: Any, batch: int, rounds: int) -> float:
    from time import perf_counter

    from gristmill.engine.ragged import Span, ragged
    from gristmill.engine.torch_runner import TorchRunner

    per_row, start = 40, 512
    runner = TorchRunner(network, batch * per_row, BLOCK_SIZE)
    spans = [
        Span([row + 5], start, range(row * per_row, (row + 1) * per_row), start + 1, 1)
        for row in range(batch)
    ]
    step = ragged(spans, BLOCK_SIZE)
    found = []
    for _ in range(3 + 5 * rounds):
        torch.cuda.synchronize()
        begun = perf_counter()
        runner.logits(runner.hidden(step))
        torch.cuda.synchronize()
        found.append(perf_counter() - begun)
    return median(found[3:])


if __name__ == "__main__":
    main()
