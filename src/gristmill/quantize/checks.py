"""What cannot be done, refused before anything is computed: an hour of work must not end at the door of a file."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from gristmill.errors import RequestError
from gristmill.formats import Model
from gristmill.formats.families import config_to_hf, family_of
from gristmill.formats.quantized import Int8Rows, planned, quantized_layers
from gristmill.kernels import Codes
from gristmill.model import Linear, Transformer
from gristmill.quantize.int8 import rounded_weights
from gristmill.quantize.layerwise import linears
from gristmill.quantize.methods import Grid
from gristmill.quantize.settings import Format, QuantizeConfig

_GROUPS = (128, 64, 32)  # tried in this order where the group is "auto"
_KERNEL_GROUP = 32  # of what the kernels compute with


def check_target(target: Path, config: QuantizeConfig) -> None:
    """Raises RequestError for a place that is taken, that no directory holds, or of the other kind than the method
    makes."""
    if target.exists():
        raise RequestError(f"{target} is there already; remove it or name another place")
    if not target.parent.is_dir():
        raise RequestError(f"there is no directory {target.parent}; make it, or name another place")
    if target.suffix == ".gguf" and config.method != "gguf":
        raise RequestError(
            f"{config.method} makes a directory, not a .gguf file; name {target.with_suffix('')}"
        )
    if target.suffix != ".gguf" and config.method == "gguf":
        raise RequestError(f"method gguf makes a file; name it {target}.gguf")


def refuse_quantized(model: Model) -> None:
    """Raises RequestError for a model whose weights are rounded already."""
    if quantized_layers(model.network):
        raise RequestError(
            f"{model.path} is quantized already. Give the full-precision model it was made from"
        )


def choose_grid(config: QuantizeConfig, network: Transformer) -> Grid:
    """The grid that the settings mean for this network. Raises RequestError, naming the layer, for a group that does
    not divide its inputs."""
    layers = linears(network)
    symmetric = config.method != "awq" if config.symmetric == "auto" else config.symmetric
    widths = {layer.in_features for layer in layers.values()}
    fitting = [g for g in _GROUPS if all(width % g == 0 for width in widths)]
    if config.method == "smoothquant":
        return Grid(8, None, True)
    if config.group == "channel":
        return Grid(config.bits, None, symmetric)
    if config.group == "auto":
        return Grid(config.bits, fitting[0] if fitting else None, symmetric)
    group = config.group
    if group < 1 or group % _KERNEL_GROUP:
        raise RequestError(
            f"--group must be a multiple of {_KERNEL_GROUP}, auto or channel, not {group}"
        )
    for name, layer in layers.items():
        if layer.in_features % group:
            cure = f"groups of {fitting[0]} fit every layer" if fitting else "--group channel fits"
            raise RequestError(
                f"{name} has {layer.in_features} inputs, which groups of {group} do not divide; {cure}"
            )
    return Grid(config.bits, group, symmetric)


def choose_format(network: Transformer, config: QuantizeConfig, grid: Grid | None = None) -> Format:
    """The format that the settings mean for this network. Raises RequestError for what it cannot hold, naming one
    that can.

    grid: of the codes; None for 8 bits with one scale a row (int8).
    """
    config_to_hf(network.config)
    rules = family_of(network.config).rules(network.config)
    if grid is None:
        names = [name.removesuffix(".weight") for name in rounded_weights(network)]
    else:
        names = list(linears(network))
    outlines = {name: _outline(network.get_submodule(name), config, grid) for name in names}

    def refusal(format: Format) -> RequestError | None:
        try:
            planned(network.config, rules, outlines, format)
        except RequestError as error:
            return error
        return None

    if config.format != "auto":
        wanted = config.format
    else:
        # transformers 5 fails to load asymmetric codes of compressed-tensors, and reads awq's.
        own = config.method == "awq" and grid is not None and not grid.symmetric
        wanted: Format = "awq" if own and refusal("awq") is None else "compressed-tensors"
    if (why := refusal(wanted)) is None:
        return wanted
    others = [name for name in get_args(Format) if name != wanted and refusal(name) is None]
    cure = f"use --format {others[0]}" if others else f"no format holds what {config.method} makes"
    raise RequestError(f"{why}; {cure}")


def _outline(layer: torch.nn.Module, config: QuantizeConfig, grid: Grid | None) -> Codes | Int8Rows:
    """What the layer will hold: shapes, a scale that fits, and a zero in the grid's middle or not."""
    assert isinstance(layer, Linear)
    out, width = layer.out_features, layer.in_features
    if grid is None or config.method == "smoothquant":
        weight = torch.empty(out, width, dtype=torch.int8, device="meta")
        return Int8Rows(weight, torch.ones(out, 1), None if grid is None else 8)
    group = grid.group or width
    zero = torch.full((out, width // group), 2 ** (grid.bits - 1), dtype=torch.uint8)
    scale = torch.ones(zero.shape, dtype=torch.float16)
    q = torch.empty(out, width, dtype=torch.uint8, device="meta")
    return Codes(q, scale, zero if grid.symmetric else zero - 1, grid.bits, group)
