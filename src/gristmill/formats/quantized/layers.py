"""Layers of a network and what they hold: from the one to the other, and back."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from gristmill.formats.quantized.scheme import Int8Rows
from gristmill.kernels import CodedMatrix, Codes, Int8Linear, QuantizedLinear
from gristmill.model import Linear, Transformer

Coded = CodedMatrix | Int8Linear


def quantized_layers(network: nn.Module) -> dict[str, Coded]:
    """Every layer that is not plain, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Coded)}


def replaceable(network: Transformer, name: str) -> bool:
    """Whether a quantized layer can stand for the parameter `name`.

    That is a linear layer of a decoder block; of the head and of routers the network reads the weights themselves.
    """
    owner, _, attribute = name.rpartition(".")
    within = name.startswith("model.layers.") and not owner.endswith(".router")
    return within and attribute == "weight" and isinstance(network.get_submodule(owner), Linear)


def layer_of(held: Codes | Int8Rows, bias: nn.Parameter | None) -> Coded:
    """The layer that computes with what a file holds; 8-bit rows stay views of the mapped file.

    Raises RequestError for groups that no kernel takes.
    """
    if isinstance(held, Codes):
        return QuantizedLinear.from_codes(held, bias=bias)
    out, width = held.weight.shape
    with torch.device("meta"):
        layer = Int8Linear(width, out, bias)
    layer.weight, layer.weight_scale = held.weight, held.scale.float()
    layer.activation_bits = held.activation_bits
    return layer


def held_by(layer: Coded) -> Codes | Int8Rows:
    """What to write of a layer, on the CPU."""
    if isinstance(layer, Int8Linear):
        return Int8Rows(layer.weight.cpu(), layer.weight_scale.cpu(), layer.activation_bits)
    codes = layer.codes()
    order = None if codes.order is None else codes.order.cpu()
    on_cpu = {name: getattr(codes, name).cpu() for name in ("q", "scale", "zero")}
    return replace(codes, **on_cpu, order=order)
