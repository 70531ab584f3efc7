"""A model rounded into a GGUF file: of one mixture, or of the types that fit a size and lose least."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gristmill.formats import Model
from gristmill.formats.gguf import GGMLType
from gristmill.formats.gguf_models import save_gguf
from gristmill.quantize.calibration import Windows
from gristmill.quantize.layerwise import importances
from gristmill.quantize.plan import Planned, Sensitivity, plan
from gristmill.quantize.settings import QuantizeConfig, Say
from gristmill.stage import Progress

_MEASURED_TOKENS = 4096  # on which sensitivities are measured, again for every group and type


def save_rounded(
    model: Model,
    file: Path,
    config: QuantizeConfig,
    windows: Windows | None,
    work: Path,
    progress: Progress,
    say: Say,
) -> dict[str, Any]:
    """Write the file; returns what the card tells about it. Raises RequestError where the size cannot be had."""
    columns = None
    if config.importance:
        assert windows is not None
        columns = importances(model.network, windows.tokens, work, progress)
    facts: dict[str, Any] = {"type": config.type, "importance": config.importance}
    if config.target_bytes is None:
        _save(model, file, config.type, None, columns)
        return facts
    assert windows is not None
    count, length = windows.tokens.shape
    kept = min(count, max(1, _MEASURED_TOKENS // length))
    chosen = windows.tokens[torch.linspace(0, count - 1, kept).long()]
    sensitivity = Sensitivity(model.network, chosen, columns)
    options = sensitivity.measure(work / "sensitivities.json", progress)
    around = 0  # what a file holds besides its tensors is known once it is there
    while True:
        said: list[str] = []
        found = plan(sensitivity, options, config.target_bytes - around, said.append)
        named = found.name != "mixed"
        _save(model, file, found.name if named else "Q8_0", None if named else found.types, columns)
        size = file.stat().st_size
        if size <= config.target_bytes:
            for line in said:
                say(line)
            return facts | _planned(found, config.target_bytes)
        assert size - found.bytes > around
        around = size - found.bytes


def _save(
    model: Model,
    file: Path,
    quant: str,
    types: Mapping[str, GGMLType] | None,
    columns: Mapping[str, np.ndarray] | None,
) -> None:
    assert model.path is not None
    # A directory has no suffix: "Llama-3.1-8B" is a name, not "Llama-3" of kind ".1-8B".
    name = model.path.name if model.path.is_dir() else model.path.stem
    save_gguf(model.network, model.tokenizer, file, quant, name, types=types, importance=columns)


def _planned(found: Planned, target: int) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for type in found.types.values():
        counts[type.name] = counts.get(type.name, 0) + 1
    return {
        "type": found.name,
        "target_bytes": target,
        "tensors": ", ".join(f"{count} × {type}" for type, count in sorted(counts.items())),
        "planned_kl": found.kl,
        "uniform_kl": {mixture: kl for mixture, _, kl in found.uniform},
    }
