"""Quantized layers from disk into the network, each as it is stored; where none can stand, its weights widened."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.formats.filling import fill
from gristmill.formats.quantized.layers import layer_of, replaceable
from gristmill.formats.quantized.rows import row_order
from gristmill.formats.quantized.scheme import Quantization
from gristmill.formats.quantized.source import QuantizedSource
from gristmill.formats.rules import Rule, complete
from gristmill.formats.source import Source
from gristmill.model import Linear, Transformer


@torch.no_grad()
def fill_quantized(
    network: Transformer,
    source: Source,
    rules: Sequence[Rule],
    quantization: Quantization,
    dtype: torch.dtype | None,
    device: torch.device,
    unused: str = "(?!)",
    widen: bool = False,
) -> None:
    """As `fill`, for a directory that holds layers which `quantization` describes.

    Linear layers of the decoder blocks become `QuantizedLinear` or `Int8Linear`, one after another, so memory stays
    near the size of the finished network. Experts (stacked here), routers and the head are widened, and with `widen`
    all. Raises RequestError, naming file and tensor.
    """
    rules = complete(rules, network)
    wanted = {name for rule in rules for name in rule.disk}
    stored = QuantizedSource(source, quantization, dtype, unused, wanted)
    meta = network.state_dict()
    plain: list[Rule] = []
    coded: list[tuple[Rule, Tensor | None]] = []
    placed: set[str] = set()
    for rule in rules:
        layers = [n for n in (d.removesuffix(".weight") for d in rule.disk) if n in stored.layers]
        placed.update(layers)
        weights = [meta[name] for name in rule.ours]
        moved = row_order(rule, [weight.shape for weight in weights]) if layers else None
        possible = not widen and all(replaceable(network, name) for name in rule.ours)
        if moved is not None and possible:
            coded.append((rule, moved.order))
            for name in rule.ours:
                _linear(network, name).register_parameter("weight", None)  # `fill` is not to ask
            continue
        plain.append(rule)
        for disk, like in zip(rule.disk, rule.save(weights), strict=True):
            if (layer := disk.removesuffix(".weight")) in layers:
                stored.widen(layer, like.shape, moved is not None and moved.transposed)
    for layer in sorted(stored.layers.keys() - placed):
        raise RequestError(
            f"{stored.place(layer)}: {layer}.{min(stored.layers[layer])} belongs to no layer of this architecture"
        )
    fill(network, stored, plain, dtype, device, unused)
    for rule, order in coded:
        _put_layers(network, stored, rule, order, device)


def _put_layers(
    network: Transformer,
    stored: QuantizedSource,
    rule: Rule,
    order: Tensor | None,
    device: torch.device,
) -> None:
    """The layers that one on disk stands for. order: as `row_order` gives it."""
    (layer,) = (name.removesuffix(".weight") for name in rule.disk)
    linears = [_linear(network, name) for name in rule.ours]
    rows = [linear.out_features for linear in linears]
    held = stored.read(layer, sum(rows), linears[0].in_features)
    if order is not None:
        held = held.rows(torch.argsort(order))
    start = 0
    for name, linear in zip(rule.ours, linears, strict=True):
        end = start + linear.out_features
        part = held if len(linears) == 1 else held.rows(slice(start, end))
        try:
            made = layer_of(part, linear.bias)
        except RequestError as error:
            raise RequestError(f"{stored.place(layer)}: {layer}: {error}") from error
        network.set_submodule(name.removesuffix(".weight"), made.to(device))
        start = end
    stored.release(layer)


def _linear(network: Transformer, weight: str) -> Linear:
    module = network.get_submodule(weight.removesuffix(".weight"))
    assert isinstance(module, Linear)
    return module
