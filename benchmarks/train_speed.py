"""Speed of a training step on the CPU: Gristmill against transformers' Llama, and both against the machine's GEMMs.

    python -m benchmarks.train_speed [--models 14M 30M] [--rounds 7]

The same shape, batch (8 x 256 tokens) and precision everywhere; each contestant is a process of its own, warmed up,
and they take turns, a few steps a round; the median of all steps counts: of their time by the clock, or of their CPU
time with --threads 1, which other work on the machine changes less. A step is forward, loss, backward, clipping to a
norm of 1 and the optimizer.

- ours: gristmill's network, `linear_cross_entropy`, and what the trainer clips and moves with; AdamW or Muon.
- transformers: LlamaForCausalLM in eager mode with SDPA, torch's clip_grad_norm_, fused AdamW. Also with the
  allocator settings of our trainer, which are no part of transformers ("+ malloc"): the faster of the two counts.
- gemm: the matrix products of this model's step alone (forward, and both of backward), one after another.

The rate of a step is (6 · weights in matrix products + attention) FLOPs a token over its time; attention is counted
causal, 6 · layers · heads · head_dim · context a token. The share is that rate over the rate of "gemm".
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gristmill.files import write_json

ROWS, CONTEXT = 8, 256


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    mlp: int
    vocabulary: int

    @property
    def matrices(self) -> list[tuple[int, int, int]]:
        """(outputs, inputs, how many) of every matrix that multiplies a token."""
        return [
            (self.width, self.width, 4 * self.layers),
            (self.mlp, self.width, 2 * self.layers),
            (self.width, self.mlp, self.layers),
            (self.vocabulary, self.width, 1),
        ]

    @property
    def flops_a_token(self) -> float:
        weights = sum(out * into * count for out, into, count in self.matrices)
        return 6.0 * weights + 6.0 * self.layers * self.width * CONTEXT


MODELS = {"14M": Shape(6, 384, 6, 1024, 8192), "30M": Shape(8, 512, 8, 1408, 8192)}


def data(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, shape.vocabulary, (ROWS, CONTEXT + 1), generator=g)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def ours(shape: Shape, optimizer: str, dtype: torch.dtype) -> Callable[[], None]:
    from gristmill.model import ModelConfig, Transformer, initialize
    from gristmill.train import OptimConfig, Optimizer
    from gristmill.train.compute import keep_freed_memory
    from gristmill.train.loss import linear_cross_entropy
    from gristmill.train.parallel.leaves import leaves, norm_of_gradients, scale_gradients

    keep_freed_memory()
    config = ModelConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.heads,
        head_dim=shape.width // shape.heads,
        intermediate_size=shape.mlp,
        max_seq_len=CONTEXT,
        tie_embeddings=True,
        family="llama",
        qk_norm=False,
    )
    network = initialize(Transformer(config), 0)
    parameters = leaves([network])
    which = OptimConfig(optimizer="muon" if optimizer == "muon" else "adamw")
    moves = Optimizer(parameters, which, dtype)
    inputs, targets = data(shape)

    def step() -> None:
        hidden = network.hidden(inputs, dtype=dtype).flatten(0, 1)
        loss, _ = linear_cross_entropy(hidden, network.head.weight, targets.flatten())
        loss.backward()
        loss.item()
        norm = norm_of_gradients(parameters) / targets.numel()
        scale_gradients(parameters, min(1.0, 1.0 / (norm + 1e-6)) / targets.numel())
        moves.step(1e-3)

    return step


def transformers(shape: Shape, malloc: bool, dtype: torch.dtype) -> Callable[[], None]:
    from transformers import LlamaConfig, LlamaForCausalLM

    from gristmill.train.compute import keep_freed_memory

    if malloc:
        keep_freed_memory()
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        use_cache=False,
        **attention,
    )
    model = LlamaForCausalLM(config).train()
    parameters = list(model.parameters())
    adamw = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), fused=True)
    inputs, targets = data(shape)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=inputs, labels=inputs, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        loss.item()

    return step


def gemm(shape: Shape, dtype: torch.dtype) -> Callable[[], None]:
    """The step's matrix products: y = x Wᵀ, dx = dy W, dW = dyᵀ x."""
    tokens = ROWS * CONTEXT
    work = []
    for out, into, count in shape.matrices:
        x, w, dy = (
            torch.randn(s, dtype=dtype) for s in ((tokens, into), (out, into), (tokens, out))
        )
        y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(w)
        work.append((x, w, dy, y, dx, dw, count))

    def step() -> None:
        for x, w, dy, y, dx, dw, count in work:
            for _ in range(count):
                torch.mm(x, w.t(), out=y)
                torch.mm(dy, w, out=dx)
                torch.mm(dy.t(), x, out=dw)

    return step


def square(dtype: torch.dtype) -> Callable[[], None]:
    a, b, c = (torch.randn(1024, 1024, dtype=dtype) for _ in range(3))

    def step() -> None:
        for _ in range(50):
            torch.mm(a, b, out=c)

    return step


def _serve(pipe: Connection, threads: int, make: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    clock = time.process_time if threads == 1 else time.perf_counter
    step = make(*arguments)
    for _ in range(2):
        step()
    pipe.send(None)
    while steps := pipe.recv():
        seconds = []
        for _ in range(steps):
            start = clock()
            step()
            seconds.append(clock() - start)
        pipe.send(seconds)


def measure(
    contestants: dict[str, tuple[Callable[..., Any], tuple]], rounds: int, steps: int, threads: int
) -> dict[str, list[float]]:
    """Seconds of every step of every contestant; rounds in turn."""
    spawn = multiprocessing.get_context("spawn")
    pipes, seconds = {}, {name: [] for name in contestants}
    for name, (make, arguments) in contestants.items():
        pipes[name], end = spawn.Pipe()
        spawn.Process(target=_serve, args=(end, threads, make, arguments), daemon=True).start()
        end.close()  # so that a child that dies is noticed
        pipes[name].recv()
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(steps)
            seconds[name] += pipe.recv()
    for pipe in pipes.values():
        pipe.send(0)
    return seconds


def main() -> None:
    options = _options()
    dtype = getattr(torch, options.dtype)
    report: dict[str, Any] = {
        "versions": {name: version(name) for name in ("gristmill", "torch", "transformers")},
        "machine": platform.machine(),
        "threads": options.threads,
        "dtype": options.dtype,
        "tokens_a_step": ROWS * CONTEXT,
        "rounds": options.rounds,
        "models": {},
    }
    for name in options.models:
        shape = MODELS[name]
        contestants: dict[str, tuple[Callable[..., Any], tuple]] = {
            "ours, AdamW": (ours, (shape, "adamw", dtype)),
            "transformers, AdamW": (transformers, (shape, False, dtype)),
            "transformers, AdamW + malloc": (transformers, (shape, True, dtype)),
            "gemm": (gemm, (shape, dtype)),
            "ours, Muon": (ours, (shape, "muon", dtype)),
            "1024³": (square, (dtype,)),
        }
        seconds = measure(contestants, options.rounds, options.steps, options.threads)
        report["models"][name] = _lines(name, shape, {k: median(v) for k, v in seconds.items()})
        write_json(options.out, report)


def _lines(name: str, shape: Shape, seconds: dict[str, float]) -> dict[str, Any]:
    """Print and return what the medians say."""
    tokens = ROWS * CONTEXT
    products = 6.0 * tokens * sum(out * into * count for out, into, count in shape.matrices)
    rates = {"gemm": products / seconds["gemm"], "1024³": 50 * 2 * 1024**3 / seconds["1024³"]}
    peer = min(s for k, s in seconds.items() if k.startswith("transformers"))
    print(
        f"{name}: GEMMs of the model {rates['gemm'] / 1e9:.1f}, 1024³ {rates['1024³'] / 1e9:.1f} GFLOP/s"
    )
    found: dict[str, Any] = {
        "gemm_gflops": rates["gemm"] / 1e9,
        "square_gflops": rates["1024³"] / 1e9,
    }
    for contestant, s in seconds.items():
        if contestant in rates:
            continue
        rate = shape.flops_a_token * tokens / s
        found[contestant] = {
            "seconds": s,
            "tokens_per_s": tokens / s,
            "gflops": rate / 1e9,
            "share_of_gemm": rate / rates["gemm"],
            "of_transformers": peer / s,
        }
        print(
            f"  {contestant:<30} {s * 1e3:7.1f} ms {tokens / s:8,.0f} tokens/s {rate / 1e9:6.1f} GFLOP/s "
            f"{rate / rates['gemm']:6.1%} of GEMM {peer / s:5.2f}x transformers"
        )
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of each contestant a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("benchmarks/results/train_speed.json")
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
