"""What a stage will take: time, memory, disk. A stage that ran here before with the same settings tells
itself; the others are modelled: training by its FLOPs against a matrix multiplication timed now, the rest
by the bytes that they read.

The model's constants come from runs of `pyhelp` on two x86 cores. Expect a factor of two, not more digits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gristmill.errors import GristmillError
from gristmill.recipe.headline import amount
from gristmill.recipe.manifest import read_manifest
from gristmill.recipe.usage import free_disk, machine_memory
from gristmill.stage import StageConfig

BASIS = (
    "Measured here where a stage has run with these settings; else modelled: training from its FLOPs and "
    "a matrix multiplication timed just now, the rest from bytes. Expect a factor of two."
)
# Share of the multiplication's speed that a training step reaches, optimizer included: 0.33 to 0.40 on one
# thread for 0.2M to 5M parameters at batches of 1,024 tokens, 0.2 to 0.3 on two.
_TRAINING_EFFICIENCY = 0.25
_SCORING_EFFICIENCY = 0.5
_BYTES_PER_TOKEN = 3.7
# stage -> (seconds, seconds per MB of documents, bytes on disk per byte of documents)
_BY_BYTES = {
    "data": (4.0, 0.35, 0.35),
    "facts": (0.5, 0.45, 0.4),
    "tokenizer": (1.5, 0.2, 0.02),
    "questions": (1.0, 0.05, 0.12),
    "tokens": (0.5, 0.05, 0.52),
    "baselines": (3.0, 1.5, 0.0),
    "index": (0.5, 0.13, 0.5),
}
_PROCESS_BYTES = 450e6  # Python with torch and pyarrow loaded


@dataclass(frozen=True)
class Estimate:
    """None where nothing honest can be said: the time of what does not fit the machine's memory."""

    seconds: float | None = None
    memory_bytes: float | None = None
    disk_bytes: float | None = None

    @property
    def fits(self) -> bool:
        return (self.memory_bytes or 0) <= machine_memory()


def estimate(configs: Mapping[str, StageConfig], run_dir: Path) -> dict[str, Estimate]:
    """stage -> estimate. Takes under a second, plus a listing of the sources when they were never read."""
    manifests = {stage: read_manifest(run_dir, stage) for stage in configs}
    found: dict[str, Estimate] = {}
    work = _Work(configs, manifests)
    for stage, config in configs.items():
        manifest = manifests[stage]
        if manifest is not None and manifest["config"] == config.model_dump(mode="json"):
            found[stage] = Estimate(
                manifest["seconds"],
                manifest["peak_memory_bytes"],
                sum(output["bytes"] for output in manifest["outputs"].values()),
            )
        elif stage in _MODELS:
            one = _MODELS[stage](stage, work)
            found[stage] = one if one.fits else replace(one, seconds=None)
    return found


def shortages(estimates: Mapping[str, Estimate], run_dir: Path) -> list[str]:
    """What this machine lacks for these stages, in words; [] when they fit."""
    said = []
    too_large = [stage for stage, one in estimates.items() if not one.fits]
    if too_large:
        need = max(estimates[stage].memory_bytes or 0 for stage in too_large)
        said.append(
            f"This does not fit this machine: {', '.join(too_large)} would take up to "
            f"{amount(need, 'bytes')} of memory, and it has {amount(machine_memory(), 'bytes')}."
        )
    disk, free = sum(one.disk_bytes or 0 for one in estimates.values()), free_disk(run_dir)
    if disk > free:
        said.append(
            f"It does not fit this disk: the results alone are {amount(disk, 'bytes')}, and "
            f"{amount(free, 'bytes')} are free at {run_dir}."
        )
    return said


class _Work:
    """The sizes that the models need, from finished stages where there are any, else from the settings."""

    def __init__(
        self, configs: Mapping[str, StageConfig], manifests: Mapping[str, dict[str, Any] | None]
    ) -> None:
        self.configs: Mapping[str, Any] = configs
        self.manifests = manifests
        self._flops: float | None = None
        self._bytes: float | None = None

    def metrics(self, stage: str) -> dict[str, Any]:
        manifest = self.manifests.get(stage)
        return manifest["metrics"] if manifest else {}

    @property
    def document_bytes(self) -> float:
        if self._bytes is None:
            splits = self.metrics("data").get("splits")
            if splits:
                self._bytes = float(sum(split["bytes"] for split in splits.values()))
            else:
                self._bytes = _source_bytes(self.configs["data"])
        return self._bytes

    @property
    def flops_per_second(self) -> float:
        if self._flops is None:
            self._flops = multiplication_speed()
        return self._flops

    @property
    def vocabulary(self) -> int:
        return self.configs["tokenizer"].vocab_size

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied with: all but the embedding table."""
        c = self.configs["pretrain"]
        attention = c.hidden_size * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)
        feed_forward = 3 * c.hidden_size * c.intermediate_size
        return c.num_layers * (attention + feed_forward) + self.vocabulary * c.hidden_size

    @property
    def parameters(self) -> int:
        c = self.configs["pretrain"]
        return self.multiplied + (0 if c.tie_embeddings else self.vocabulary * c.hidden_size)

    @property
    def conversations(self) -> float:
        known = self.metrics("questions").get("sft_train")
        c = self.configs["questions"]
        return known or c.max_facts * (c.phrasings + 2) / (1 - c.grounded_share)

    def training(self, tokens: float, batch_tokens: float, passes: float) -> Estimate:
        """passes: 1 for a forward and a backward one, more where a reference is scored too."""
        c = self.configs["pretrain"]
        attention = 6 * c.num_layers * c.num_heads * c.head_dim * min(c.context, batch_tokens)
        flops = (6 * self.multiplied + attention) * tokens * passes
        activations = batch_tokens * 4 * (c.num_layers * 30 * c.hidden_size + 4 * self.vocabulary)
        return Estimate(
            2 + flops / (_TRAINING_EFFICIENCY * self.flops_per_second),
            1.5 * _PROCESS_BYTES + 16 * self.parameters + 3 * activations,
            4 * self.parameters,
        )


def _by_bytes(stage: str, work: _Work) -> Estimate:
    fixed, per_mb, disk = _BY_BYTES[stage]
    size = work.document_bytes
    memory = _PROCESS_BYTES + (50 if stage == "baselines" else 6) * size  # the 5-gram's counts
    return Estimate(fixed + per_mb * size / 1e6, memory, disk * size)


def _pretrain(stage: str, work: _Work) -> Estimate:
    c = work.configs[stage]
    return work.training(c.tokens, c.batch_tokens, 1)


def _sft(stage: str, work: _Work) -> Estimate:
    c = work.configs[stage]
    tokens_each = 60  # a question and its answer, some with passages
    tokens = c.epochs * work.conversations * tokens_each
    return work.training(tokens, c.batch_examples * tokens_each, 1)


def _dpo(stage: str, work: _Work) -> Estimate:
    c = work.configs[stage]
    tokens_each = 2 * 60  # a question with its right and its wrong answer
    tokens = c.epochs * c.max_pairs * tokens_each
    own = c.own_samples * c.own_max_tokens  # answers that it writes itself, a token at a time
    each = max(0.001, 2 * work.multiplied / (_SCORING_EFFICIENCY * work.flops_per_second))
    trained = work.training(tokens, c.batch_pairs * tokens_each, 1.5)
    return Estimate((trained.seconds or 0) + own * each, trained.memory_bytes, trained.disk_bytes)


def _quantize(stage: str, work: _Work) -> Estimate:
    seconds = 1.0 + work.parameters / 100e6
    return Estimate(seconds, _PROCESS_BYTES + 8 * work.parameters, 2 * work.parameters)


def _evaluate(stage: str, work: _Work) -> Estimate:
    c = work.configs[stage]
    text = 5 * work.configs["baselines"].heldout_bytes / _BYTES_PER_TOKEN  # five models
    choices = 3 * 2 * c.choices * 4 * (40 + 250)  # models, seen and held out, options, both ways
    pairs = 3 * 2 * c.pairs * 2 * 60
    flops = 2 * work.multiplied * (text + choices + pairs)
    seconds = 5 + flops / (_SCORING_EFFICIENCY * work.flops_per_second)
    return Estimate(seconds, _PROCESS_BYTES + 20 * work.parameters, 20e3)


_MODELS: dict[str, Callable[[str, _Work], Estimate]] = {
    **dict.fromkeys(_BY_BYTES, _by_bytes),
    "pretrain": _pretrain,
    "sft": _sft,
    "dpo": _dpo,
    "quantize": _quantize,
    "evaluate": _evaluate,
    "report": lambda stage, work: Estimate(0.5, _PROCESS_BYTES, 200e3),
}


def _source_bytes(config: Any) -> float:
    """Bytes that the data stage will keep: what the sources offer, up to the limit."""
    from gristmill.data.build import resolve

    try:
        offered = sum(group.bytes for group in resolve(config))
    except (GristmillError, OSError):
        offered = config.max_bytes
    return float(min(offered, config.max_bytes))


def multiplication_speed(seconds: float = 0.15) -> float:
    """FLOP/s of a 512 x 512 matrix multiplication in float32, with the threads that training would use."""
    import torch

    a = torch.ones(512, 512)
    torch.mm(a, a)
    best, until, tries = 0.0, time.perf_counter() + seconds, 0
    while time.perf_counter() < until or tries < 20:  # the best of many: other work is not ours
        start = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * 512**3 / (time.perf_counter() - start))
        tries += 1
    return best
