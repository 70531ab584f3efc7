"""From a cold process to the first token, and the memory it takes: ours beside transformers.

    python -m benchmarks.load [--rounds N] [--dtype bfloat16] [--stored bfloat16]

A random model in the shape of Qwen2.5-0.5B (494M parameters) is written once as a Hugging Face directory; then
each side starts a Python process that loads it with its tokenizer and predicts one token after a prompt. The
sides take turns; medians count. Peak memory is the resident set (Linux), mapped pages of the file included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

SIDES = ("gristmill", "transformers")
PROMPT = "Once upon a time there was"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", help="that the weights are loaded to")
    parser.add_argument("--stored", default="bfloat16", help="that they have on disk")
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/load.json"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        first_token(options.side, options.model, options.dtype)
        return
    with tempfile.TemporaryDirectory() as directory:
        weights = write_model(Path(directory), options.stored)
        results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for round_ in range(options.rounds + 1):
            for side in SIDES:
                measured = ask(side, Path(directory), options.dtype)
                if round_ > 0:  # the first warms the file system's cache for both
                    results[side].append(measured)
    report(results, weights, options)


def write_model(directory: Path, dtype: str) -> int:
    """Returns the bytes of its weights."""
    import heapq

    from gristmill.formats import Model
    from gristmill.formats.hf import torch_dtype
    from gristmill.model import ModelConfig, Transformer, initialize
    from gristmill.tokenizer import train_bpe

    config = ModelConfig(
        family="qwen2",
        vocab_size=151_936,
        hidden_size=896,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=4864,
        max_seq_len=32_768,
        rope_theta=1_000_000.0,
        qk_norm=False,
        attention_bias=True,
    )
    network = initialize(Transformer(config), seed=0).to(torch_dtype(dtype))
    tokenizer = train_bpe(iter([Path(heapq.__file__).read_text(encoding="utf-8")]), 512)
    Model(network, tokenizer).save(directory)
    print(f"{config.num_parameters / 1e6:,.0f}M parameters, stored as {dtype}")
    return sum(p.numel() * torch_dtype(dtype).itemsize for p in network.parameters())


def ask(side: str, model: Path, dtype: str) -> dict[str, float]:
    """Seconds from the start of a process to its first token, and its peak memory in bytes."""
    command = [sys.executable, "-m", "benchmarks.load", "--side", side, "--model", str(model)]
    start = perf_counter()
    process = subprocess.Popen([*command, "--dtype", dtype], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = perf_counter() - start
    process.wait()
    return {"seconds": seconds, **json.loads(line)}


def first_token(side: str, directory: Path, dtype: str) -> None:
    """In a process of its own: load, predict, say which token and how much memory it took."""
    if side == "gristmill":
        from gristmill.engine import Engine
        from gristmill.formats import Model
        from gristmill.lm import Request, SamplingParams

        engine = Engine(Model.load(directory, dtype=dtype))
        params = SamplingParams(max_tokens=1, temperature=0.0)
        token = engine.generate([Request(PROMPT, params)])[0].token_ids[0]
    else:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        ids = AutoTokenizer.from_pretrained(directory)(PROMPT, return_tensors="pt")
        with torch.inference_mode():
            token = int(model.generate(**ids, max_new_tokens=1, do_sample=False)[0, -1])
    # Not getrusage's ru_maxrss, which a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"token": token, "peak_bytes": peak}), flush=True)


def report(
    results: dict[str, list[dict[str, float]]], weights: int, options: argparse.Namespace
) -> None:
    import torch
    import transformers

    from gristmill.files import write_json

    ours, theirs = (
        {key: median(run[key] for run in results[side]) for key in ("seconds", "peak_bytes")}
        for side in SIDES
    )
    print(f"to the first token as {options.dtype}, transformers {transformers.__version__}:")
    for side, found in zip(SIDES, (ours, theirs), strict=True):
        share = found["peak_bytes"] / weights
        print(
            f"  {side:12} {found['seconds']:6.2f} s   peak {found['peak_bytes'] / 1e9:.2f} GB"
            f" ({share:.2f} × the weights on disk)"
        )
    ratio = ours["seconds"] / theirs["seconds"]
    print(f"  ours takes {ratio:.2f} of the peer's time (goal: at most 0.5)")
    write_json(
        options.out,
        {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dtype": options.dtype,
            "stored": options.stored,
            "weights_bytes": weights,
            "ratio": ratio,
            "medians": {"gristmill": ours, "transformers": theirs},
            "runs": results,
        },
    )


if __name__ == "__main__":
    main()
