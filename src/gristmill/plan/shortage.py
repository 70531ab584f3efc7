"""What to do where a training does not fit: the sentence for people."""

from __future__ import annotations

from dataclasses import replace

from gristmill.model import ModelConfig
from gristmill.plan.memory import memory_of
from gristmill.plan.settings import Layout, Sizes, Training


def smaller(training: Training) -> list[tuple[str, Training]]:
    """Settings that need less memory, each with what was changed, the cheapest change first; changes add up."""
    said: list[str] = []
    found: list[tuple[str, Training]] = []
    steps: list[tuple[str, dict[str, object]]] = []
    if training.recompute == "none":
        steps.append(("recompute selective", {"recompute": "selective"}))
    rows = training.micro_batch_rows
    while rows > 1:
        rows //= 2
        steps.append((f"micro-batches of {rows} rows" if rows > 1 else "micro-batches of one row",
                      {"micro_batch_rows": rows}))  # fmt: skip
    if training.recompute != "full":
        steps.append(("recompute full", {"recompute": "full"}))
    if training.optimizer == "adamw":
        steps.append(("optimizer muon", {"optimizer": "muon"}))
    for words, change in steps:
        training = replace(training, **change)  # type: ignore[arg-type]
        kind = words.split()[0]
        said = [*(w for w in said if w.split()[0] != kind), words]
        found.append((", ".join(said), training))
    return found


def shortage(
    config: ModelConfig, layout: Layout, training: Training, available: float
) -> str | None:
    """None where it fits into `available` bytes a device; else a sentence: what it needs, and what would do."""
    need = memory_of(config, layout, training).total
    if need <= available:
        return None
    said = f"needs {need / 1e9:,.1f} GB a device, you have {available / 1e9:,.1f}"
    for words, changed in smaller(training):
        total = memory_of(config, layout, changed).total
        if total <= available:
            return f"{said}: use {words} ({total / 1e9:,.1f} GB)"
    more = layout.dp
    while more < 65_536 and training.zero == 3:
        more *= 2
        wider = Sizes(more, layout.replicas, layout.tp, layout.pp, layout.cp, layout.ep)
        tried = [("", training), *smaller(training)]
        need, words = min((memory_of(config, wider, t).total, words) for words, t in tried)
        if need <= available:
            also = f" with {words}" if words else ""
            return f"{said}: use dp = {more}{also} ({need / 1e9:,.1f} GB)"
    return f"{said}: use a smaller model, shorter rows, or tensor and pipeline parallelism"
