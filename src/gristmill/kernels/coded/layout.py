"""How coded matrices lie in memory: sixteen output rows side by side (src/native/coded.h says it in full).

Fields are what a matrix of one coding holds, as tensors with a row for each output; `pack` and `unpack` move them
into the layout and back, and change no bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 16  # output rows that lie side by side
BLOCK = 32  # inputs


@dataclass(frozen=True)
class Coding:
    """number: in native code. record: inputs of a record; 0: the matrix's own group. header, block: fields that a
    record and a block begin with, in their order, and how many of each. W = scale * (q - offset) (+ minimum)."""

    number: int
    bits: int
    offset: int
    record: int
    header: tuple[str, ...]
    block: tuple[str, ...] = ()
    per_block: int = 1


CODINGS = {
    "Q4_0": Coding(0, 4, 8, 32, ("d",)),
    "Q4_1": Coding(1, 4, 0, 32, ("d", "m")),
    "Q5_0": Coding(2, 5, 16, 32, ("d",)),
    "Q5_1": Coding(3, 5, 0, 32, ("d", "m")),
    "Q8_0": Coding(4, 8, 0, 32, ("d",)),
    "Q4_K": Coding(5, 4, 0, 256, ("d", "dmin"), ("scale", "min")),
    "Q5_K": Coding(6, 5, 0, 256, ("d", "dmin"), ("scale", "min")),
    "Q6_K": Coding(7, 6, 32, 256, ("d",), ("scale",), 2),
    # Their zeros, and the codes of int8, are 128 less than those of `Codes` where codes have 8 bits.
    "int4": Coding(8, 4, 0, 0, ("scale", "zero")),
    "int8": Coding(9, 8, 0, 0, ("scale", "zero")),
}


def pack(kind: Coding, fields: dict[str, Tensor], group: int) -> Tensor:
    """The matrix as native code reads it, uint8 [strips, bytes of a strip], padded with zeros.

    fields: "q" [out, in] of one byte; those of the header [out, records], of the blocks [out, records, blocks,
    per_block]. group: inputs of a record.
    """
    out, width = fields["q"].shape
    records, blocks = width // group, -(-group // BLOCK)
    q = fields["q"].view(torch.uint8).view(out, records, group)
    q = F.pad(q, (0, blocks * BLOCK - group, 0, 0, 0, -out % STRIP))
    words = q.view(-1, STRIP, records * blocks, 8, 4).permute(0, 2, 3, 1, 4)
    heads = [_side_by_side(fields[name]).flatten(2) for name in kind.header]
    inner = [_side_by_side(fields[name]).flatten(3) for name in kind.block]
    if inner:
        heads.append(torch.cat(inner, dim=-1).flatten(2))
    head = torch.cat(heads, dim=-1).flatten(1)
    head = F.pad(head, (0, -head.shape[1] % 64))
    return torch.cat([head, _join(words, kind.bits).flatten(1)], dim=-1)


def unpack(
    kind: Coding, packed: Tensor, width: int, group: int, scale: torch.dtype
) -> dict[str, Tensor]:
    """What `pack` was given, with the rows that were added. scale: the dtype of "int4"'s and "int8"'s scales."""
    fields, at = {}, 0
    records, blocks = width // group, -(-group // BLOCK)
    codes = records * blocks * (512 if kind.bits == 8 else 64 * kind.bits)
    dtypes = {"scale": scale, "zero": torch.int8}
    size = sum(dtypes.get(name, torch.float16).itemsize for name in kind.header)
    size += blocks * len(kind.block) * kind.per_block
    head = packed[:, : records * size * STRIP].unflatten(1, (records, -1))
    for name in kind.header:
        dtype = dtypes.get(name, torch.float16)
        end = at + STRIP * dtype.itemsize
        fields[name] = _apart(head[..., at:end], dtype)
        at = end
    if kind.block:
        inner, at = head[..., at:].unflatten(-1, (blocks, -1)), 0
        dtype = torch.int8 if kind.per_block == 2 else torch.uint8
        for name in kind.block:
            end = at + STRIP * kind.per_block
            fields[name] = _apart(inner[..., at:end].unflatten(-1, (-1, STRIP)), dtype)
            at = end
    words = _split(packed[:, -codes:].unflatten(1, (records * blocks, -1)), kind.bits)
    q = words.permute(0, 3, 1, 2, 4).reshape(-1, records, blocks * BLOCK)[..., :group]
    fields["q"] = q.flatten(1).view(torch.int8 if kind.bits == 8 else torch.uint8)
    return fields


def _side_by_side(field: Tensor) -> Tensor:
    """[out, …] -> uint8 [strips, …, 16 x bytes]."""
    padded = torch.cat([field, field.new_zeros(-len(field) % STRIP, *field.shape[1:])])
    return padded.unflatten(0, (-1, STRIP)).movedim(1, -1).contiguous().view(torch.uint8)


def _apart(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The way back."""
    return values.contiguous().view(dtype).movedim(-1, 1).flatten(0, 1).contiguous()


def _join(words: Tensor, bits: int) -> Tensor:
    """Codes uint8 [strips, blocks, 8, 16, 4], by word of four inputs -> bytes [strips, blocks, n]."""
    if bits == 8:
        return words.flatten(2)
    low = words[..., :4, :, :] & 15 | (words[..., 4:, :, :] & 15) << 4
    parts, high = [low.flatten(2)], words >> 4
    if bits == 5:
        parts.append(
            sum((high[..., j, :, :] << j for j in range(1, 8)), high[..., 0, :, :]).flatten(2)
        )
    if bits == 6:
        pairs = high.unflatten(2, (2, 4))
        parts.append(
            sum((pairs[..., s, :, :] << 2 * s for s in range(1, 4)), pairs[..., 0, :, :]).flatten(2)
        )
    return torch.cat(parts, dim=-1)


def _split(data: Tensor, bits: int) -> Tensor:
    """The way back."""
    if bits == 8:
        return data.unflatten(-1, (8, STRIP, 4))
    low = data[..., :256].unflatten(-1, (4, STRIP, 4))
    words = torch.cat([low & 15, low >> 4], dim=-3)
    if bits == 5:
        high = data[..., 256:].unflatten(-1, (1, STRIP, 4))
        shifts = torch.arange(8, dtype=torch.uint8, device=data.device).view(8, 1, 1)
        words = words | (high >> shifts & 1) << 4
    if bits == 6:
        high = data[..., 256:].unflatten(-1, (2, 1, STRIP, 4))
        shifts = (2 * torch.arange(4, dtype=torch.uint8, device=data.device)).view(4, 1, 1)
        words = words | ((high >> shifts & 3) << 4).flatten(-4, -3)
    return words
