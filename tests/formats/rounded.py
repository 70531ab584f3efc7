"""Networks rounded to nearest, layer by layer: something quantized to write, read and compare."""

from __future__ import annotations

import torch
from torch import Tensor

from gristmill.kernels import Codes, QuantizedLinear, use_activations
from gristmill.model import Linear, Transformer


def random_codes(
    out: int, width: int, group: int, bits: int, symmetric: bool, least: int = 0, seed: int = 0
) -> Codes:
    """Every code as likely as any other; zeros from `least` on."""
    generator = torch.Generator().manual_seed(seed)

    def below(end: int, *shape: int, start: int = 0) -> Tensor:
        return torch.randint(start, end, shape, generator=generator).to(torch.uint8)

    scale = (0.01 + 0.02 * torch.rand(out, width // group, generator=generator)).half()
    zero = below(2**bits, out, width // group, start=least)
    if symmetric:
        zero = torch.full_like(zero, 2 ** (bits - 1))
    return Codes(below(2**bits, out, width), scale, zero, bits, group)


def nearest(weight: Tensor, bits: int = 4, group: int = -1, symmetric: bool = True) -> Codes:
    """weight [out, in] by rounding to nearest; a group of -1 is a whole row. Scales are fp16."""
    size, top = weight.shape[1] if group == -1 else group, 2**bits - 1
    grouped = weight.float().unflatten(1, (-1, size))
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scale = ((high - low) / top).half()
    zero = (-low / scale.float()).round().clamp(0, top)
    if symmetric:
        zero = torch.full_like(zero, 2 ** (bits - 1))
    q = (grouped / scale.float()[..., None]).round() + zero[..., None]
    q = q.clamp(0, top).flatten(1)
    return Codes(q.to(torch.uint8), scale, zero.to(torch.uint8), bits, size)


def quantize(network: Transformer, keep: tuple[str, ...] = (), **grid) -> Transformer:
    """`network` itself, each linear layer of its blocks but routers and those in `keep` rounded."""
    for name, module in list(network.named_modules()):
        within = name.startswith("model.layers.") and not name.endswith("router")
        if within and isinstance(module, Linear) and name not in keep:
            codes = nearest(module.weight.detach(), **grid)
            network.set_submodule(name, QuantizedLinear.from_codes(codes, bias=module.bias))
    return exact(network)


def exact(network: Transformer) -> Transformer:
    """Activations in full precision, as other programs have them."""
    use_activations(network, "float")
    return network
