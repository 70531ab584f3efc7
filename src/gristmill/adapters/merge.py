"""An adapter folded into the weights, so that it costs nothing, and taken out again bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gristmill.adapters.resident import (
    adapted_layers,
    having,
    remove_from,
    residents_of,
    unfreeze,
)
from gristmill.errors import RequestError
from gristmill.kernels import Int8Linear, QuantizedLinear


@torch.no_grad()
def merge(network: nn.Module, name: str = "default") -> None:
    """W <- W + scale · B A, or DoRA's W', computed in fp32 and rounded to the dtype of W.

    The weights before are kept for `unmerge`: subtracting would not give the same bits. While merged, no other
    adapter can be used. Raises RequestError for 8-bit layers, and where something is merged already.
    """
    residents = having(network, name)
    if residents.merged is not None:
        raise RequestError(f"adapter {residents.merged!r} is merged already; unmerge it first")
    layers = {n: (m, a) for n, (m, a) in adapted_layers(network).items() if name in a}
    for module, (linear, _) in layers.items():
        if isinstance(linear, Int8Linear | QuantizedLinear):
            raise RequestError(
                f"{module} has 8-bit weights, into which an adapter cannot be merged: load the "
                "full-precision model and merge there, then quantize"
            )
    for linear, adapters in layers.values():
        weight = linear.weight
        assert isinstance(weight, Tensor)
        adapters.unmerged = weight.data
        weight.data = adapters[name].merged(linear).to(weight.dtype)  # type: ignore[operator]
    residents.merged, residents.active = name, name


@torch.no_grad()
def unmerge(network: nn.Module) -> None:
    """Take the merged adapter out: every weight has the bits it had. It stays resident and active."""
    residents = residents_of(network)
    if residents.merged is None:
        raise RequestError("no adapter is merged")
    for linear, adapters in adapted_layers(network).values():
        if adapters.unmerged is not None:
            weight = linear.weight
            assert isinstance(weight, Tensor)
            weight.data = adapters.unmerged
            adapters.unmerged = None
    residents.merged = None


def merge_and_unload(network: nn.Module, name: str | None = None) -> None:
    """Merge for good and take every adapter off: a plain network, as it can be saved or quantized.

    `name` None: the adapter that is merged already, or else the active one. Raises RequestError where there is
    none.
    """
    residents = residents_of(network)
    name = name or residents.merged or residents.active
    if name is None:
        raise RequestError("no adapter is active: name the one to merge")
    if residents.merged != name:
        merge(network, name)
    for linear, _ in adapted_layers(network).values():
        remove_from(linear)
    unfreeze(residents)
