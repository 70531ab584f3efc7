"""A model on disk to a smaller one beside it: checked, resumable, whole or not at all."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gristmill.errors import RequestError
from gristmill.formats import Model, resolve, save_hf
from gristmill.formats.quantized import Int8Rows, layer_of
from gristmill.kernels import Codes
from gristmill.machine import peak_memory
from gristmill.model import Linear, Transformer
from gristmill.quantize import methods
from gristmill.quantize.calibration import Windows
from gristmill.quantize.checks import check_target, choose_format, choose_grid, refuse_quantized
from gristmill.quantize.estimate import estimate
from gristmill.quantize.gguf import check_size, save_rounded
from gristmill.quantize.int8 import quantize_network
from gristmill.quantize.layerwise import Done, Method, linears, quantize_blocks
from gristmill.quantize.settings import CALIBRATED, Format, QuantizeConfig, Say
from gristmill.quantize.stream import Stream
from gristmill.quantize.work import disk_told, keep_or_clear, key_of, locked, remove
from gristmill.stage import Progress, quiet


@dataclass
class Made:
    """What was made: the place, settings and numbers of its making, and notes of each layer (proxy losses, …)."""

    target: Path
    facts: dict[str, Any]
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)


def check(source: str | Path | Model, target: str | Path, config: QuantizeConfig) -> Model:
    """The model `source`, if `config` can make `target` of it. Raises RequestError where it cannot; nothing is
    computed."""
    target = Path(target).expanduser()
    check_target(target, config)
    model = source if isinstance(source, Model) else Model.load(resolve(source), dtype="auto")
    refuse_quantized(model)
    if config.method == "gguf":
        if config.target_bytes is not None:
            check_size(model, config.target_bytes)
    else:
        grid = None if config.method == "int8" else choose_grid(config, model.network)
        choose_format(model.network, config, grid)
    return model


def quantize(
    source: str | Path | Model,
    target: str | Path,
    config: QuantizeConfig,
    calibration: Windows | None = None,
    *,
    progress: Progress = quiet,
    say: Say = lambda line: None,
) -> Made:
    """Quantize the model `source` into `target`: a Hugging Face directory, or a .gguf file for method "gguf".

    A Model must be as `check` gives it, loaded from disk in the dtype that it has there; its layers are replaced.
    Work under way lies in `.work-NAME` beside the target; a run that was killed goes on from there, and work of other
    settings or another model is thrown away, which is said. Raises RequestError for what cannot be done, before
    anything is computed, and WorkError where activations are not finite or the disk is full.
    """
    begun = time.monotonic()
    target = Path(target).expanduser()
    model = check(source, target, config)
    assert model.path is not None
    work = target.with_name(f".work-{target.name}")
    facts: dict[str, Any] = {"method": config.method}
    made = Made(target, facts)
    looks = config.method in CALIBRATED or config.importance or config.target_bytes is not None
    if looks and calibration is None:
        raise RequestError(f"{config.method} needs text to calibrate on: give --calibration FILE")
    windows = calibration if looks else None
    with locked(work):
        check_target(target, config)  # another run may have made it meanwhile
        partial = target.with_name(f".partial-{target.name}")
        remove(partial)
        try:
            if config.method == "int8":
                keep_or_clear(work, key_of(model.path, config, windows), say)
                quantize_network(model.network)
                facts |= {"bits": 8, "group": "channel"}
                _save(model, partial, "compressed-tensors")
            elif config.method == "gguf":
                keep_or_clear(work, key_of(model.path, config, windows), say)
                facts |= save_rounded(model, partial, config, windows, work, progress, say)
            else:
                _layerwise(model, made, partial, config, windows, work, progress, say)
            partial.rename(target)
        finally:
            remove(partial)
        shutil.rmtree(work)
    if windows is not None:
        facts |= calibration_facts(windows)
    facts |= {"seconds": round(time.monotonic() - begun, 1), "peak_memory_bytes": peak_memory()}
    return made


def _layerwise(
    model: Model,
    made: Made,
    partial: Path,
    config: QuantizeConfig,
    windows: Windows | None,
    work: Path,
    progress: Progress,
    say: Say,
) -> None:
    """Block by block, into a directory."""
    network = model.network
    grid = choose_grid(config, network)
    format = choose_format(network, config, grid)
    made.facts |= {"bits": grid.bits, "group": grid.group or "channel"}
    made.facts |= {"symmetric": grid.symmetric, "format": format}
    if format == "compressed-tensors" and not grid.symmetric:
        say(
            "transformers 5 fails to load asymmetric compressed-tensors unless it is asked to dequantize them; vLLM "
            "and Gristmill read them"
        )
    if config.method == "smoothquant":
        made.facts["activations"] = "8 bits by token in the file's description, full precision here"
    if windows is not None:
        _warn_few(network, windows, say)
    assert model.path is not None
    keep_or_clear(work, key_of(model.path, config, windows), say)
    tokens = None if windows is None else windows.tokens

    def begun(stream: Stream | None, left: int) -> None:
        expected = estimate(network, config.method, grid.bits, tokens, stream, left)
        made.facts["estimated_seconds"] = round(expected.seconds, 1)
        say(
            f"{config.method}, {grid.bits} bits, {f'groups of {grid.group}' if grid.group else 'one scale a row'}: "
            f"about {max(1, round(expected.seconds))} s and {expected.memory_bytes / 1e9:,.1f} GB of memory"
        )

    method = _method(config, grid, network.model.norm.weight.dtype)
    blocks = quantize_blocks(network, method, tokens, work, progress, begun=begun)
    for layer, done in blocks:
        _install(network, layer, done, made)
        _tell_damping(layer, done, config.damping, say)
    _save(model, partial, format)


def calibration_facts(windows: Windows) -> dict[str, Any]:
    count, length = windows.tokens.shape
    return {
        "calibration": windows.source,
        "calibration_windows": f"{count} × {length} tokens",
        "calibration_sha256": windows.sha256,
        "seed": windows.seed,
    }


def _warn_few(network: Transformer, windows: Windows, say: Say) -> None:
    widest = max(layer.in_features for layer in linears(network).values())
    tokens = windows.tokens.numel()
    if tokens < widest:
        say(
            f"{tokens:,} calibration tokens are fewer than the {widest:,} inputs of the widest layer: what is not "
            "seen is left to damping. More text is better (--samples, --length)"
        )


def _tell_damping(layer: int, done: Done, asked: float, say: Say) -> None:
    """Where GPTQ had to raise it, the layers follow the text less closely than was asked for."""
    used = {name: notes.get("damping", asked) for name, notes in done.notes.items()}
    raised = [f"{name} to {value:g}" for name, value in used.items() if value > asked]
    if raised:
        say(
            f"model.layers.{layer}: the damping of {asked:g} was raised for {', '.join(raised)}: these inputs vary "
            "too little on the calibration text. More text is better (--samples, --length)"
        )


def _method(config: QuantizeConfig, grid: methods.Grid, dtype: torch.dtype) -> Method:
    """dtype: that the norms are stored in."""
    if config.method == "gptq":
        return methods.GPTQ(grid, config.damping, config.mse)
    if config.method == "awq":
        return methods.AWQ(grid, dtype)
    if config.method == "smoothquant":
        return methods.SmoothQuant(dtype)
    return methods.RoundToNearest(grid)


def _install(network: Transformer, layer: int, done: Done, made: Made) -> None:
    """Put a finished block's layers into the network; what stands before them is let go."""
    block = network.model.layers[layer]
    for name, tensor in done.changed.items():
        owner, _, attribute = name.rpartition(".")
        old = getattr(block.get_submodule(owner), attribute)
        kept = nn.Parameter(tensor.to(old.dtype), requires_grad=False)
        setattr(block.get_submodule(owner), attribute, kept)
    for name, codes in done.codes.items():
        old = block.get_submodule(name)
        assert isinstance(old, Linear)
        parent, _, child = name.rpartition(".")
        setattr(block.get_submodule(parent), child, _layer(codes, old.bias))
    for name, notes in done.notes.items():
        made.layers[f"model.layers.{layer}.{name}"] = notes


def _layer(codes: Codes, bias: nn.Parameter | None) -> nn.Module:
    """8 bits with one fp32 scale a row are SmoothQuant's, whose activations are rounded too."""
    if codes.scale.dtype != torch.float32:
        return layer_of(codes, bias)
    weight = (codes.q.to(torch.int16) - 128).to(torch.int8)
    return layer_of(Int8Rows(weight, codes.scale, 8), bias)


def _save(model: Model, partial: Path, format: Format) -> None:
    """As a directory, with the card that the original has."""
    assert model.path is not None
    card = model.path / "README.md"
    text = card.read_text(encoding="utf-8") if model.path.is_dir() and card.is_file() else None
    with disk_told(partial):
        save_hf(
            model.network,
            partial,
            model.tokenizer,
            card=text,
            generation=model.generation,
            quantization=format,
        )
