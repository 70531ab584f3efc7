"""What the formats have in common: how one layer lies on disk, and what becomes of it in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.kernels import Codes


@dataclass(frozen=True)
class Int8Rows:
    """What an `Int8Linear` holds: weight int8 [out, in], scale float [out, 1]; W = weight * scale.

    activation_bits: 8 where the file was made for activations rounded to 8 bits too, token by token.
    """

    weight: Tensor
    scale: Tensor
    activation_bits: int | None = None

    def rows(self, chosen: Tensor | slice) -> Int8Rows:
        return Int8Rows(self.weight[chosen], self.scale[chosen], self.activation_bits)

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return (self.weight * self.scale.float()).to(dtype)


class Scheme(Protocol):
    """How one layer [out, in] lies on disk; tensors are named by what follows the layer's name and a point."""

    def layout(self, out: int, width: int, held: Collection[str]) -> dict[str, Tensor]:
        """The shapes and types that the layer's tensors must have, without memory; with it, also their content.

        `held` are those that there are: some are written by some programs only.
        Raises RequestError for a shape that the format cannot hold.
        """
        ...

    def unpack(self, tensors: Mapping[str, Tensor]) -> Codes | Int8Rows:
        """What they say. Raises RequestError for groups of inputs that are not all of one size."""
        ...

    def check(self, codes: Codes | Int8Rows) -> None:
        """Whether `pack` can hold this layer; of the codes only the shape counts. Raises RequestError."""
        ...

    def pack(self, codes: Codes | Int8Rows) -> dict[str, Tensor]:
        """The tensors that hold a layer which `check` accepts; `unpack` gives it back."""
        ...


@dataclass(frozen=True)
class Quantization:
    """A directory's quantization. marks: tensors by which a quantized layer is known. scheme: of a layer on disk."""

    marks: tuple[str, ...]
    scheme: Callable[[str], Scheme]


@dataclass(frozen=True)
class Plan:
    """How to write a network: the scheme of each quantized layer by its name on disk, and quantization_config."""

    schemes: Mapping[str, Scheme]
    config: dict[str, Any]


def empty(dtype: torch.dtype, *shape: int) -> Tensor:
    """Shape and type without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def order_of(group_of: Tensor, group: int) -> Tensor | None:
    """For each input its group, int [in] -> the inputs in the order of their groups; None where that is their own.

    Raises RequestError for groups that are not all of `group` inputs.
    """
    group_of = group_of.long()
    expected = torch.arange(group_of.numel()) // group
    if torch.equal(group_of, expected):
        return None
    order = torch.argsort(group_of, stable=True)
    if not torch.equal(group_of[order], expected):
        raise RequestError(f"its groups of inputs are not of {group} inputs each")
    return order


def one_grid(layers: Mapping[str, Codes | Int8Rows], format: str) -> tuple[int, int]:
    """Bits and group size of all layers; a group of -1 is a whole row, however long.

    Raises RequestError where layers differ: `format` says each once for the whole model.
    """
    grids: dict[tuple[int, int], str] = {}
    whole = all(isinstance(c, Codes) and c.group == c.q.shape[1] for c in layers.values())
    for name, codes in layers.items():
        if isinstance(codes, Int8Rows):
            raise RequestError(
                f'{name} has 8-bit weights with one scale a row; save it as "compressed-tensors"'
            )
        grids.setdefault((codes.bits, codes.group), name)
    if len(grids) > 1 and whole and len({bits for bits, _ in grids}) == 1:
        return next(iter(grids))[0], -1
    if len(grids) > 1:
        (first, second), (a, b) = list(grids)[:2], list(grids.values())[:2]
        raise RequestError(
            f"{a} has {first[0]} bits in groups of {first[1]} and {b} {second[0]} bits in groups of "
            f'{second[1]}; {format} files hold one kind alone, "compressed-tensors" holds both'
        )
    return next(iter(grids))


def half(scale: Tensor) -> Tensor:
    """Scales in float16. Raises RequestError where that would change them."""
    found = scale.half()
    if not torch.equal(found.float(), scale.float()):
        raise RequestError("its scales do not fit float16, which the format stores")
    return found


def number(config: Mapping[str, Any], file: Path, keys: Sequence[str]) -> int:
    """The whole number under the first of `keys` that is there (older writers named some otherwise)."""
    value = next((config[key] for key in keys if key in config), None)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{file}: {keys[0]} must be a whole number, not {value!r}")
    return value


def check_group(width: int, group: int) -> int:
    """Inputs a group of a layer of `width` inputs; -1 is all. Raises RequestError where they do not divide."""
    size = width if group == -1 else group
    if size < 1 or width % size:
        raise RequestError(f"{width} inputs are no whole number of groups of {group}")
    return size
