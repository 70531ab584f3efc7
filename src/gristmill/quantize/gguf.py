"""A model rounded into a GGUF file: of one mixture, or of the types that fit a size and lose least."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gristmill.errors import RequestError
from gristmill.formats import Model, name_of
from gristmill.formats.gguf import QUANTIZATION_VERSION, GGMLType, tensor_types, write_gguf
from gristmill.formats.gguf_models import gguf_shapes, save_gguf
from gristmill.quantize.calibration import Windows
from gristmill.quantize.layerwise import importances
from gristmill.quantize.plan import ALIGNMENT, UNIFORM, Planned, Sensitivity, Sizes, plan
from gristmill.quantize.settings import QuantizeConfig, Say
from gristmill.stage import Progress
from gristmill.tokenizer import to_gguf_metadata

_MEASURED_TOKENS = 4096  # on which sensitivities are measured, again for every group and type
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "KB"))


def save_rounded(
    model: Model,
    file: Path,
    config: QuantizeConfig,
    windows: Windows | None,
    work: Path,
    progress: Progress,
    say: Say,
) -> dict[str, Any]:
    """Write the file; returns what the card tells about it. A size must have passed `check_size`."""
    columns = None
    if config.importance:
        assert windows is not None
        columns = importances(model.network, windows.tokens, work, progress)
    if config.target_bytes is not None and largest_fits(model, config.target_bytes):
        say("Q8_0, the largest type to choose from, fits: all tensors get it, nothing is measured")
        config = config.model_copy(update={"type": "Q8_0", "target_bytes": None})
    facts: dict[str, Any] = {"type": config.type, "importance": config.importance}
    if config.target_bytes is None:
        if why := _fallbacks(model, config.type):
            say(why)
        _save(model, file, config.type, None, columns)
        return facts
    assert windows is not None
    count, length = windows.tokens.shape
    kept = min(count, max(1, _MEASURED_TOKENS // length))
    chosen = windows.tokens[torch.linspace(0, count - 1, kept).long()]
    sensitivity = Sensitivity(model.network, chosen, columns)
    options = sensitivity.measure(
        work / "sensitivities.json",
        progress,
        lambda left, seconds: say(
            f"gguf, chosen to fit: {left} sensitivities to measure, about {max(1, round(seconds))} s"
        ),
    )
    found = plan(sensitivity, options, config.target_bytes - _around(model, sensitivity), say)
    named = found.name != "mixed"
    _save(model, file, found.name if named else "Q8_0", None if named else found.types, columns)
    assert file.stat().st_size <= config.target_bytes
    return facts | _planned(found, config.target_bytes)


def check_size(model: Model, target: int) -> None:
    """Raises RequestError where not even the smallest types fit `target` bytes."""
    sizes = Sizes(model.network)
    smallest = sizes.with_all(min) + _around(model, sizes)
    if target < smallest:
        unit, name = next(((u, n) for u, n in _UNITS if smallest >= u), _UNITS[-1])
        least = math.ceil(smallest / unit * 100) / 100
        raise RequestError(
            f"--target-size {target / unit:,.2f} {name} is too small: with the smallest types that are chosen from, "
            f"this model takes {least:,.2f} {name}"
        )


def largest_fits(model: Model, target: int) -> bool:
    """Whether all tensors can have the largest types, those of the mixture Q8_0."""
    sizes = Sizes(model.network)
    return sizes.with_all(max) + _around(model, sizes) <= target


def _around(model: Model, sizes: Sizes) -> int:
    """Bytes of a file besides its tensors: at most so many, and exactly so many in one of a named mixture."""
    assert model.path is not None
    general = {
        "general.name": name_of(model.path),
        "general.file_type": 0,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    vocabulary = to_gguf_metadata(model.tokenizer, model.network.config.vocab_size)
    ones = [np.zeros((1,) * len(shape), np.float32) for shape in sizes.shapes.values()]
    tensors = [
        (name, one.shape, GGMLType.F32, one) for name, one in zip(sizes.shapes, ones, strict=True)
    ]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "header.gguf"
        write_gguf(file, {**general, **sizes.metadata, **vocabulary}, tensors)
        return file.stat().st_size - ALIGNMENT * len(tensors)


def _fallbacks(model: Model, mixture: str) -> str | None:
    """What is said where rows are no whole blocks of the mixture's types, and other types stand in for them."""
    if mixture not in UNIFORM:
        return None
    block = 256 if "_K" in mixture else 32
    shapes, metadata = gguf_shapes(model.network)
    types = tensor_types(mixture, list(shapes.items()), metadata)
    odd = [
        name for name, type in types.items() if type != GGMLType.F32 and shapes[name][-1] % block
    ]
    if not odd:
        return None
    rows = " and ".join(map(str, sorted({shapes[name][-1] for name in odd})))
    stand_in = " and ".join(sorted({types[name].name for name in odd}, reverse=True))
    return f"{mixture}: rows of {rows} are no whole blocks of {block}, so {len(odd)} tensors are {stand_in}"


def _save(
    model: Model,
    file: Path,
    quant: str,
    types: Mapping[str, GGMLType] | None,
    columns: Mapping[str, np.ndarray] | None,
) -> None:
    assert model.path is not None
    save_gguf(
        model.network,
        model.tokenizer,
        file,
        quant,
        name_of(model.path),
        types=types,
        importance=columns,
    )


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
