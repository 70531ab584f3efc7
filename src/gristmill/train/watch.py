"""What a run is seen by while it goes: its speed and memory, where it waits, and what it writes.

Clocks are kept out of metrics.jsonl, which is the same for every run of the same settings; they go to timing.jsonl.
The speed is that of the steps alone, the time that is left counts evaluations and checkpoints too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median_low
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gristmill.files import read_jsonl, write_text
from gristmill.machine import resident_memory
from gristmill.model import SLIDING, ModelConfig, Transformer, meta_network
from gristmill.tokenizer import Tokenizer
from gristmill.train.loggers import Logger, LogTo, open_loggers
from gristmill.train.noise import NoiseMeter
from gristmill.train.parallel.spread import Spread

SAMPLE_TOKENS = 32
STRAGGLES = 1.5  # times the median process: named as a straggler

# Dense bf16 products with fp32 accumulation, in FLOP/s, as their makers print them. Other devices are measured.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


class Watch:
    """Rows of `out_dir/timing.jsonl` and what goes with them; its methods are called by every process, in step.

    context: tokens that attend to each other, where targets are tokens; 0: no FLOPs are counted. log_to: see
    loggers.py; settings: what they show beside it. prompts are continued at every evaluation into samples.jsonl;
    that needs the tokenizer and a single process. measure_noise: see noise.py, and it needs micro-batches.
    """

    def __init__(
        self,
        out_dir: Path,
        *,
        context: int = 0,
        log_to: Sequence[LogTo] = (),
        settings: Mapping[str, Any] | None = None,
        prompts: Sequence[str] = (),
        tokenizer: Tokenizer | None = None,
        measure_noise: bool = False,
    ) -> None:
        self.out_dir, self.context = out_dir, context
        self.prompts, self.tokenizer = prompts, tokenizer
        self._log_to, self._settings = log_to, settings or {}
        self._measure_noise = measure_noise
        self._noise: NoiseMeter | None = None
        self._loggers: list[Logger] = []
        self.waited = {"data": 0.0, "checkpoints": 0.0}  # seconds

    def begin(self, spread: Spread, step: int) -> None:
        """A run stands at `step` and goes on."""
        self._spread = spread
        self._flops = self._peak = 0.0
        if self.context:
            self._flops = flops_per_token(spread.network.config, self.context)
            self._peak = sum(self._of_all(peak_flops(spread.device, spread.dtype)))
        if self._measure_noise:
            self._noise = NoiseMeter(leaf.parameter for leaf in spread.leaves)
        if spread.first:
            self._loggers = open_loggers(self._log_to, self.out_dir, step, self._settings)
        self._steps = 0  # of this process
        self._busy, self._targets = 0.0, 0  # since the row before
        # Rows of steps that are made again are written again.
        path = self.out_dir / "timing.jsonl"
        kept = [row for row in (read_jsonl(path) if path.is_file() else []) if row["step"] <= step]
        self._before = kept[-1]["seconds"] if kept else 0.0
        if spread.first and path.is_file():
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._began = time.monotonic()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step of training."""
        began = time.monotonic()
        yield
        self._busy += time.monotonic() - began
        self._steps += 1

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around what training waits for: "data" or "checkpoints"."""
        began = time.monotonic()
        yield
        self.waited[what] += time.monotonic() - began

    def gradients(self, targets: int, *, keep: bool) -> None:
        """The gradients of a step, summed over its targets, are there. keep: the step is taken."""
        self._targets += targets
        if self._noise is not None:
            self._noise.end_step(targets, self._spread.micro_batches, keep=keep)

    def noise(self) -> dict[str, float]:
        """What a row says of the gradient's noise since the row before."""
        if self._noise is None:
            return {}
        tokens = self._noise.tokens
        self._noise.forget()
        return {} if tokens is None else {"noise_tokens": tokens}

    def evaluated(self, step: int) -> None:
        """An evaluation is made, and the network still is as it was for it."""
        if not self.prompts or not self._spread.first:
            return
        assert self.tokenizer is not None
        made = []
        for prompt in self.prompts:
            ids = self.tokenizer.document_start + self.tokenizer.encode(prompt)
            new = continued(self._spread.network, ids, SAMPLE_TOKENS, self._spread.dtype)
            text = self.tokenizer.decode(new)
            made.append({"step": step, "prompt": prompt, "continuation": text})
        # A run that went back writes its later samples anew.
        rows = [row for row in self.samples() if row["step"] < step] + made
        write_text(
            self.out_dir / "samples.jsonl",
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        )

    def samples(self) -> list[dict[str, Any]]:
        """All that were written so far."""
        path = self.out_dir / "samples.jsonl"
        return list(read_jsonl(path)) if path.is_file() else []

    def row(self, step: int, steps: int, row: Mapping[str, Any], counts: str) -> dict[str, float]:
        """Log what was measured since the row before; returns what is worth a look. counts: what a target is."""
        now = time.monotonic()
        speed = self._targets / max(1e-9, self._busy)
        shown = {f"{counts}_per_s": speed}
        seconds = self._before + now - self._began
        timing: dict[str, Any] = {"step": step, "seconds": seconds, **shown}
        if self._flops:
            timing["flops_per_s"] = speed * self._flops
            timing["mfu"] = shown["mfu"] = speed * self._flops / self._peak
            timing["peak_flops_per_s"] = self._peak
        timing["memory_bytes"] = resident_memory()
        if self._spread.device.type == "cuda":
            timing["cuda_peak_bytes"] = torch.cuda.max_memory_allocated()
        timing["eta_seconds"] = (now - self._began) / max(1, self._steps) * (steps - step)
        timing["waited_for_data_s"] = max(self._of_all(self.waited["data"]))
        timing["waited_for_checkpoints_s"] = max(self._of_all(self.waited["checkpoints"]))
        if self._spread.mesh is not None:
            device = self._spread.device
            alone = min(_seconds_of_product(device, torch.float32) for _ in range(3))
            timing |= slowest(self._of_all(alone))
        if self._spread.first:
            with open(self.out_dir / "timing.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(timing) + "\n")
            for logger in self._loggers:
                logger.log(step, _flat(row) | _flat(timing, "timing/"))
        self._busy, self._targets = 0.0, 0
        return shown

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()
        self._loggers = []

    def _of_all(self, value: float) -> list[float]:
        """Every process's value."""
        if self._spread.mesh is None:
            return [value]
        told = torch.tensor([value], dtype=torch.float64, device=self._spread.device)
        everyone = [torch.empty_like(told) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, told)
        return [float(one) for one in everyone]


def slowest(seconds: Sequence[float]) -> dict[str, Any]:
    """Of processes that did the same work alone: how the slowest compares with the median, and which straggle.

    The time of a step says nothing: it is the same on all, for they wait for each other in it.
    """
    usual = median_low(seconds)
    straggling = [rank for rank, one in enumerate(seconds) if one > STRAGGLES * usual]
    found: dict[str, Any] = {"slowest_over_median": max(seconds) / usual}
    return found | ({"stragglers": straggling} if straggling else {})


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Of training: 6 a parameter that a token is multiplied with (the head, but not the embedding table) and
    12 · layers · d · T/2 for causal attention, d being heads · head_dim; of a window, what it lets be seen."""
    multiplied = 0.0
    for name, parameter in meta_network(config).named_parameters():
        if parameter.ndim == 3 and config.moe is not None:
            share = config.moe.experts_per_token / config.moe.num_experts
            multiplied += parameter.numel() * share
        elif parameter.ndim == 2 and "embed_" not in name:
            multiplied += parameter.numel()
    if config.tie_embeddings:
        multiplied += config.vocab_size * config.hidden_size
    widths = config.num_heads * (config.head_dim + config.value_head_dim)
    attention = 0.0
    for layer in range(config.num_layers):
        window = config.sliding_window if config.layer_type(layer) == SLIDING else None
        window = min(window or context, context)
        attention += 6 * widths * window * (1 - window / (2 * context))
    return 6 * multiplied + attention


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of products on the device: printed ones of a known GPU in bf16, else those of the best of some made now.

    Takes some tenths of a second on a CPU.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in _PEAKS.items():
            if all(word in name for word in known.split()):
                return peak
    # The best of many: on a busy machine most of them waited for their turn.
    best = min(_seconds_of_product(device, dtype) for _ in range(50))
    return 2 * _side(device) ** 3 / best


def _side(device: torch.device) -> int:
    return 4096 if device.type == "cuda" else 512


def _seconds_of_product(device: torch.device, dtype: torch.dtype) -> float:
    a = torch.ones(_side(device), _side(device), dtype=dtype, device=device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    torch.mm(a, a)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def continued(network: Transformer, ids: list[int], count: int, dtype: torch.dtype) -> list[int]:
    """The `count` likeliest next tokens, one after the other, by the network as it is and without a cache.

    Of more than its context the network sees the end.
    """
    device = next(network.parameters()).device
    seen = list(ids)
    for _ in range(count):
        window: Tensor = torch.tensor([seen[-network.config.max_seq_len :]], device=device)
        hidden = network.hidden(window, dtype=dtype)
        seen.append(int(network.logits(hidden[0, -1]).argmax()))
    return seen[len(ids) :]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and k != "step"}
    return {prefix + name: float(value) for name, value in numbers.items()}
