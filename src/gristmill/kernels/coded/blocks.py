"""GGUF's blocks taken apart: the fields of each type (formulas and order: ggml's dequantize_row functions)."""

from __future__ import annotations

import torch
from torch import Tensor

Fields = dict[str, Tensor]


def fields_of(type: str, blocks: Tensor) -> Fields:
    """blocks uint8 [out, row bytes] of a GGUF type -> fields as `layout.pack` takes them."""
    size, take = _TYPES[type]
    return take(blocks.unflatten(1, (-1, size)))


def block_bytes(type: str) -> int:
    return _TYPES[type][0]


def _half(data: Tensor) -> Tensor:
    """uint8 [out, records, 2] -> float16 [out, records]."""
    return data.contiguous().view(torch.float16).squeeze(-1)


def _nibbles(data: Tensor) -> Tensor:
    """[..., n] -> [..., 2n]: all low ones, then all high ones."""
    return torch.cat([data & 15, data >> 4], dim=-1)


def _q4_0(b: Tensor) -> Fields:
    return {"d": _half(b[..., :2]), "q": _nibbles(b[..., 2:]).flatten(1)}


def _q4_1(b: Tensor) -> Fields:
    return {"d": _half(b[..., :2]), "m": _half(b[..., 2:4]), "q": _nibbles(b[..., 4:]).flatten(1)}


def _fifth(data: Tensor) -> Tensor:
    """uint8 [..., 4] -> 0 or 16, [..., 32]: element e has bit e of the little-endian word."""
    bits = data[..., None] >> torch.arange(8, dtype=torch.uint8) & 1
    return bits.flatten(-2) << 4


def _q5_0(b: Tensor) -> Fields:
    q = _nibbles(b[..., 6:]) | _fifth(b[..., 2:6])
    return {"d": _half(b[..., :2]), "q": q.flatten(1)}


def _q5_1(b: Tensor) -> Fields:
    q = _nibbles(b[..., 8:]) | _fifth(b[..., 4:8])
    return {"d": _half(b[..., :2]), "m": _half(b[..., 2:4]), "q": q.flatten(1)}


def _q8_0(b: Tensor) -> Fields:
    return {"d": _half(b[..., :2]), "q": b[..., 2:].flatten(1).view(torch.int8)}


def _six_bits(s: Tensor) -> Fields:
    """The eight scales and minima in twelve bytes [out, records, 12]."""
    first, second, third = s[..., :4], s[..., 4:8], s[..., 8:]
    scale = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=-1)
    least = torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=-1)
    return {"scale": scale[..., None], "min": least[..., None]}


def _pairs(qs: Tensor) -> Tensor:
    """Nibbles of K-types [out, records, 128]: of each 32 bytes the low ones are a block, then the high ones."""
    return _nibbles(qs.unflatten(-1, (4, 32))).flatten(-2)


def _q4_k(b: Tensor) -> Fields:
    heads = {"d": _half(b[..., :2]), "dmin": _half(b[..., 2:4]), **_six_bits(b[..., 4:16])}
    return {**heads, "q": _pairs(b[..., 16:]).flatten(1)}


def _q5_k(b: Tensor) -> Fields:
    heads = {"d": _half(b[..., :2]), "dmin": _half(b[..., 2:4]), **_six_bits(b[..., 4:16])}
    planes = torch.arange(8, dtype=torch.uint8)[:, None]  # bit n of a byte belongs to block n
    fifth = (b[..., None, 16:48] >> planes & 1) << 4
    return {**heads, "q": (_pairs(b[..., 48:]) | fifth.flatten(-2)).flatten(1)}


def _q6_k(b: Tensor) -> Fields:
    low = _nibbles(b[..., :128].unflatten(-1, (2, 64)))  # of each half: 128 elements in order
    shifts = (2 * torch.arange(4, dtype=torch.uint8))[:, None]
    high = (b[..., 128:192].unflatten(-1, (2, 1, 32)) >> shifts & 3).flatten(-2)
    scale = b[..., 192:208].contiguous().view(torch.int8).unflatten(-1, (8, 2))
    return {"d": _half(b[..., 208:]), "scale": scale, "q": (low | high << 4).flatten(1)}


# Bytes of a block, and what takes it apart.
_TYPES = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
