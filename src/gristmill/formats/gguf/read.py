"""A GGUF file, mapped into memory: its metadata, and its tensors as bytes or as float32.

Layout (GGUF specification; versions 2 and 3 differ only in the number): magic, u32 version, u64 tensor
count, u64 key count, the keys and values, one entry a tensor, padding to the alignment, the tensors' data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gristmill.errors import RequestError, nearest
from gristmill.formats.gguf.blocks import dequantize, is_finite
from gristmill.formats.gguf.types import UNREAD_TYPES, GGMLType
from gristmill.formats.gguf.values import U32, U64, Cursor, shown
from gristmill.formats.mapped import MappedFile

ALIGNMENT = 32  # where general.alignment does not say otherwise
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 63  # ggml's GGML_MAX_NAME less its terminator
MAX_DIMS = 4

# Each entry becomes a few Python objects, several times its own bytes; the largest models have a thousand
# tensors and under a hundred keys.
_MAX_ENTRIES = 20_000
# The shortest possible entries, against which the counts in the header are compared.
_SMALLEST_KEY, _SMALLEST_TENSOR = 14, 25


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `shape` is row-major, as torch and numpy have it; the file has it reversed."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int  # of its first byte, from the start of the file
    nbytes: int


class GGUFFile:
    """`GGUFFile.open(path)`, then `.metadata`, `.tensors`, `.load(name)`, `.raw(name)`.

    The file stays mapped as long as this object or an array made from it lives. Nothing but the header is
    read before a tensor is asked for.
    """

    def __init__(
        self, path: Path, mapped: MappedFile, typed: dict[str, Any], tensors: dict[str, TensorInfo]
    ):
        self.path = path
        self._mapped = mapped
        self.typed_metadata: Mapping[str, Any] = MappingProxyType(typed)
        """As `metadata`, with numpy scalars that keep the file's types: `write_gguf` copies it exactly."""
        self.metadata: Mapping[str, Any] = MappingProxyType(
            {k: v.item() if isinstance(v, np.generic) else v for k, v in typed.items()}
        )
        """Key -> int, float, bool or str; read-only 1-D array of numbers; `LazyArray` of str or arrays."""
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        """Name -> `TensorInfo`, in the file's order."""

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Map a file and check its whole header against its size.

        Memory taken is bounded by the header that is there, never by what it claims. Raises RequestError with
        one line that names the file and the key or tensor.
        """
        path = Path(path)
        try:
            if not path.is_file():
                what = "is not a file" if path.exists() else "does not exist"
                raise RequestError(f"{path} {what}; give a .gguf file")
            if path.stat().st_size < 24:
                raise RequestError(
                    f"{path} is too short for a GGUF file ({path.stat().st_size} bytes); "
                    "download or convert the file again"
                )
            with open(path, "rb") as file:
                mapped = MappedFile(file)
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from error
        data = np.frombuffer(mapped.view(0, mapped.size), np.uint8)
        data.flags.writeable = False
        cursor = Cursor(data, path)
        tensor_count, key_count = _counts(cursor)
        typed = _metadata(cursor, key_count)
        return cls(path, mapped, typed, _tensors(cursor, tensor_count, _alignment(cursor, typed)))

    def raw(self, name: str) -> np.ndarray:
        """A tensor's bytes as they are: uint8 [*shape[:-1], bytes of a row], a view of the mapped file.

        Writing to it changes this process's copy of a page, never the file.
        """
        info = self._info(name)
        data = np.frombuffer(self._mapped.view(info.offset, info.nbytes), np.uint8)
        return data.reshape(*info.shape[:-1], -1)

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages, unless a view of them lives; see `MappedFile.release`."""
        info = self._info(name)
        self._mapped.release(info.offset, info.nbytes)

    def load(self, name: str) -> np.ndarray:
        """A tensor as float32 of its shape, newly allocated; values as ggml dequantizes them.

        Raises RequestError for NaN or infinity in the file: a norm or a scale of a block that is none ruins
        whatever the model says. `raw` gives the bytes all the same.
        """
        info = self._info(name)
        return dequantize(self.checked(name), info.type).reshape(info.shape)

    def checked(self, name: str) -> np.ndarray:
        """`raw`. Raises RequestError for NaN or infinity, as `load` does."""
        info, raw = self._info(name), self.raw(name)
        if not is_finite(raw, info.type):
            what = "values" if info.type.block_size == 1 else "scales"
            raise RequestError(
                f"{self.path}: tensor {shown(name)} holds NaN or infinity among its {what} ({info.type.name}); "
                "download or convert the file again"
            )
        return raw

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise RequestError(
                f"{self.path} holds no tensor {shown(name)}.{nearest(name, self.tensors)}"
            )
        return self.tensors[name]


def _counts(cursor: Cursor) -> tuple[int, int]:
    """Check magic and version, and that so many tensors and keys could be there at all."""
    path, size = cursor.path, len(cursor.data)
    magic = bytes(cursor.data[cursor.advance(4, "the magic") : 4])
    if magic != b"GGUF":
        raise RequestError(f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'")
    version = cursor.number(U32, "the version")
    if version and version & 0xFFFF == 0:
        raise RequestError(f"{path} is a big-endian GGUF file; convert it to little-endian first")
    if version not in (2, 3):
        raise RequestError(
            f"{path} is GGUF version {version}; versions 2 and 3 are read: convert the model again"
        )
    tensors = cursor.number(U64, "the number of tensors")
    keys = cursor.number(U64, "the number of keys")
    left = size - cursor.at
    if tensors * _SMALLEST_TENSOR + keys * _SMALLEST_KEY > left:
        raise cursor.error(
            f"it claims {tensors} tensors and {keys} keys, more than its {size} bytes can hold"
        )
    if max(tensors, keys) > _MAX_ENTRIES:
        raise cursor.error(
            f"{tensors} tensors and {keys} keys are more than the {_MAX_ENTRIES} allowed"
        )
    return tensors, keys


def _metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number in range(count):
        key = cursor.string(f"key {number + 1} of {count}", MAX_KEY_BYTES)
        if not key or key in values:
            raise cursor.error(
                f"key {shown(key)} is {'there twice' if key else 'empty'}, before byte {cursor.at}"
            )
        what = f"key {shown(key)}"
        values[key] = cursor.value(cursor.value_type(what), what)
    return values


def _alignment(cursor: Cursor, typed: dict[str, Any]) -> int:
    value = typed.get("general.alignment", np.uint32(ALIGNMENT))
    right = isinstance(value, np.generic) and value.dtype == np.dtype("<u4")
    if not right or value == 0 or int(value) & (int(value) - 1):
        found = value.item() if isinstance(value, np.generic) else type(value).__name__
        raise cursor.error(
            f"key 'general.alignment' must be a power of two as uint32, not {shown(str(found))}"
        )
    return int(value)


def _tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    entries = [_entry(cursor, f"tensor {number + 1} of {count}") for number in range(count)]
    data_start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, type, offset in entries:
        if name in tensors:
            raise cursor.error(f"tensor {shown(name)} is there twice")
        if offset % alignment:
            raise cursor.error(f"tensor {shown(name)} is not aligned to {alignment} bytes")
        elements = 1
        for size in shape:
            elements *= size
        nbytes = type.nbytes(elements)
        start = data_start + offset
        if start + nbytes > len(cursor.data):
            raise cursor.error(
                f"tensor {shown(name)} ends at byte {start + nbytes}, but the file at "
                f"{len(cursor.data)}"
            )
        tensors[name] = TensorInfo(name, shape, type, start, nbytes)
    ordered = sorted(tensors.values(), key=lambda info: info.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise cursor.error(f"tensors {shown(before.name)} and {shown(after.name)} overlap")
    return tensors


def _entry(cursor: Cursor, what: str) -> tuple[str, tuple[int, ...], GGMLType, int]:
    """Name, row-major shape, type and offset from the start of the data."""
    name = cursor.string(f"the name of {what}", MAX_NAME_BYTES)
    what = f"tensor {shown(name)}"
    if not name:
        raise cursor.error(f"a tensor has no name, before byte {cursor.at}")
    dims = cursor.number(U32, what)
    if dims > MAX_DIMS:
        raise cursor.error(f"{what} has {dims} dimensions, more than {MAX_DIMS}")
    shape = tuple(reversed([cursor.number(U64, what) for _ in range(dims)]))
    if 0 in shape:
        raise cursor.error(f"{what} has no elements: its shape is {list(shape)}")
    number = cursor.number(U32, what)
    offset = cursor.number(U64, what)
    try:
        type = GGMLType(number)
    except ValueError:
        known = ", ".join(t.name for t in GGMLType)
        if number in UNREAD_TYPES:
            problem = f"{what} is of type {UNREAD_TYPES[number]}, which is not read"
        else:
            problem = f"{what} is of the unknown ggml type {number}"
        raise RequestError(
            f"{cursor.path}: {problem}; read are {known}: convert the model to one of these"
        ) from None
    row = shape[-1] if shape else 1
    if row % type.block_size:
        raise cursor.error(
            f"{what} has rows of {row}, which are not whole blocks of {type.block_size} "
            f"({type.name})"
        )
    return name, shape, type, offset
