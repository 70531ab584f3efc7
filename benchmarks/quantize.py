"""GPTQ of one layer: ours against GPTQModel's, on the same inputs, with the same settings. AWQ of one model likewise.

    python -m benchmarks.quantize [--shapes 768x768 2048x768] [--rounds 3] [--threads N]
    GPTQMODEL_CPU_WORKERS=2 python -m benchmarks.quantize --awq [--rounds 3] [--threads N]

4 bits, groups of 128, symmetric, damping 0.01, in both orders that the two have in common: "static" (columns by
descending diag(H), every group's grid fitted beforehand) and "none". Timed is everything after the inputs were seen:
the factor of the Hessian and the sweep. The two take turns; the median round counts, by the clock and in time of
the processor (which tells more on a busy machine). The proxy loss tr(ΔW H ΔWᵀ) is that of the weights as a file
holds them, float16 scales, beside that of rounding to nearest. Inputs are random but correlated, as activations are.

AWQ is of a random model of 13.8M parameters (the "10M" of `benchmarks.engine.models`), 4 bits asymmetric, groups of
128, 16 windows of 256 random tokens; theirs in bfloat16, as it takes no float32 on a CPU. From the loaded model to
all codes; ours writes its files too.
(With one worker, its choice on two cores, GPTQModel refuses to begin: one of its pools wants two.)

The peer lies apart from our own packages, where `make .venv/.ready-to-test` puts it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine import models
from gristmill.files import read_object, write_json
from gristmill.quantize import QuantizeConfig, quantize
from gristmill.quantize.calibration import Windows
from gristmill.quantize.gptq import Hessian, Order, gptq
from gristmill.quantize.grid import round_to_nearest

SHAPES = ["768x768", "2048x768", "768x2048"]
BITS, GROUP, DAMPING = 4, 128, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="OUTxIN")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--awq", action="store_true", help="AWQ of a model instead")
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/quantize.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.path.append(str(Path(sys.prefix) / "peers/gptqmodel"))
    record = read_object(options.out) if options.out.is_file() else {}
    if options.awq:
        record["awq"] = awq(options.rounds) | {"threads": options.threads}
        write_json(options.out, record)
        return
    rows = []
    table = [
        f"{'out x in':>11} {'order':>6} {'ours':>9} {'GPTQModel':>10} {'ratio':>6} {'of cpu':>6}"
    ]
    table[0] += f" {'proxy':>9} {'theirs':>9} {'rounding':>9}"
    for shape in options.shapes:
        out, width = map(int, shape.split("x"))
        for order in ("static", "none"):
            row = compared(out, width, order, options.rounds)
            rows.append(row)
            table.append(
                f"{shape:>11} {order:>6} {row['ours_ms']:7.1f}ms {row['theirs_ms']:8.1f}ms {row['ratio']:5.1f}x "
                f"{row['cpu_ratio']:5.1f}x {row['proxy']:9.4f} {row['theirs_proxy']:9.4f} {row['rounding_proxy']:9.4f}"
            )
    versions = {"gptqmodel": version("gptqmodel"), "torch": torch.__version__}
    print(
        f"GPTQModel {versions['gptqmodel']}, torch {versions['torch']}, {options.threads} threads"
    )
    print("\n".join(table))
    write_json(
        options.out, record | {"versions": versions, "threads": options.threads, "rows": rows}
    )


def layer(out: int, width: int) -> tuple[Tensor, Tensor]:
    """weight [out, width], and inputs [4·width, width] that are correlated and of very different size."""
    generator = torch.Generator().manual_seed(out * 7919 + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mixing = normal(width, width) / width**0.5 * normal(width).exp()
    return normal(out, width) * 0.02, normal(4 * width, width) @ mixing + 0.1 * normal(
        4 * width, width
    )


def compared(out: int, width: int, order: Order, rounds: int) -> dict[str, Any]:
    weight, x = layer(out, width)
    clocks: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    hessian = Hessian(width)
    hessian.add(x)

    def timed(who: str, quantize: Callable[[], Any]) -> Any:
        wall, cpu = perf_counter(), process_time()
        result = quantize()
        clocks[who].append((perf_counter() - wall, process_time() - cpu))
        return result

    for _ in range(rounds):
        peer = theirs(weight, order)
        peer.add_batch(x, None)
        their_weight, their_scale, _, groups = timed("theirs", peer.quantize)[:4]
        fresh = Hessian(width)  # without the factor of the round before
        fresh.matrix, fresh.tokens = hessian.matrix, hessian.tokens
        settings: dict[str, Any] = dict(bits=BITS, group=GROUP, order=order, damping=DAMPING)
        result = timed("ours", lambda: gptq(weight, fresh, **settings))  # noqa: B023 - called at once

    def proxy(quantized: Tensor) -> float:
        delta = quantized - weight
        return ((delta @ hessian.matrix) * delta).sum().item()

    scale = their_scale[:, groups]
    stored = (their_weight / scale).round() * scale.half().float()
    wall, cpu = ({who: median(pair[i] for pair in clocks[who]) for who in clocks} for i in (0, 1))
    return {
        "out": out,
        "in": width,
        "order": order,
        "ours_ms": wall["ours"] * 1e3,
        "theirs_ms": wall["theirs"] * 1e3,
        "ratio": wall["theirs"] / wall["ours"],
        "cpu_ratio": cpu["theirs"] / cpu["ours"],
        "proxy": proxy(result.codes.matrix()),
        "theirs_proxy": proxy(stored),
        "rounding_proxy": proxy(round_to_nearest(weight, bits=BITS, group=GROUP).matrix()),
    }


def theirs(weight: Tensor, order: Order) -> Any:
    """GPTQModel's quantizer of one layer, with our settings."""
    config = import_module("gptqmodel.quantization").QuantizeConfig(
        bits=BITS,
        group_size=GROUP,
        sym=True,
        damp_percent=DAMPING,
        desc_act=order == "static",
        static_groups=order == "static",
        act_group_aware=False,
    )
    module = nn.Linear(*weight.T.shape, bias=False)
    module.weight.data = weight.clone()
    peer = import_module("gptqmodel.quantization.gptq").GPTQ(module, config)
    peer.quantizer.configure(perchannel=True)
    peer.fallback = None
    return peer


def awq(rounds: int) -> dict[str, Any]:
    """Seconds of AWQ, ours and GPTQModel's."""
    peer, peer_config = import_module("gptqmodel"), import_module("gptqmodel.quantization")
    clocks: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(os.environ.get("GRISTMILL_BENCHMARK_MODELS", temporary))
        model = models.written(place, "10M")
        tokens = torch.randint(
            300, models.shape("10M").vocab_size - 300, (16, 256), generator=generator
        )
        windows = Windows(tokens, "random", "random", 0)
        examples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in tokens.tolist()]
        for round_ in range(rounds):
            config = peer_config.QuantizeConfig(
                bits=BITS, group_size=GROUP, sym=False, method="awq", format="gemm", device="cpu"
            )
            loaded = peer.GPTQModel.load(str(model), config, dtype=torch.bfloat16)
            settings = QuantizeConfig.model_validate(
                {"method": "awq", "bits": BITS, "group": GROUP}
            )
            target = Path(temporary) / f"ours-{round_}"
            for who, call in (
                ("theirs", partial(loaded.quantize, examples, batch_size=1)),
                ("ours", partial(quantize, model, target, settings, windows)),
            ):
                wall, cpu = perf_counter(), process_time()
                call()
                clocks[who].append((perf_counter() - wall, process_time() - cpu))
    wall, cpu = ({who: median(pair[i] for pair in clocks[who]) for who in clocks} for i in (0, 1))
    found = {"seconds": wall, "cpu_seconds": cpu, "ratio": wall["theirs"] / wall["ours"]}
    found["cpu_ratio"] = cpu["theirs"] / cpu["ours"]
    print(
        f"AWQ: ours {wall['ours']:.1f} s, GPTQModel {version('gptqmodel')} {wall['theirs']:.1f} s: "
        f"{found['ratio']:.1f} times, {found['cpu_ratio']:.1f} of the processor's time"
    )
    return found


if __name__ == "__main__":
    main()
