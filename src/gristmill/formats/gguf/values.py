"""Metadata values: what follows a key in a GGUF file, read from and written to bytes.

Layout (GGUF specification, version 3): a u32 value type, then the value; a string is a u64 length and
UTF-8; an array is a u32 element type, a u64 count and the elements, which may be arrays themselves.
Whatever a length or count claims is compared with the bytes that are there before anything is made of it.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, overload

import numpy as np

from gristmill.errors import RequestError

MAX_STRING_BYTES = 1 << 25  # the longest known, a tokenizer.json inside a file, is about 2**24
# Strings in the arrays of one file; an inner array counts as 16, as it takes that much longer to walk. The
# largest vocabularies have 0.8M tokens and merges, and 2M strings are walked in half a second.
MAX_ITEMS = 1 << 21
_ARRAY_ITEMS = 16
MAX_DEPTH = 8  # arrays in arrays

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


class ValueType(IntEnum):
    """The type of a metadata value, with its number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


DTYPES: dict[ValueType, np.dtype] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}


def shown(name: str) -> str:
    """A name from a file, quoted and short enough for one line."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


class Cursor:
    """A place in the mapped file (uint8 [size]) that moves forward as values are read."""

    def __init__(self, data: np.ndarray, path: Path, at: int = 0):
        self.data, self.path, self.at = data, path, at
        self._bytes = data.data
        self._items = 0

    def error(self, problem: str) -> RequestError:
        return RequestError(f"{self.path}: {problem}; download or convert the file again")

    def advance(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they begin. The file must hold them."""
        start = self.at
        if count > len(self.data) - start:
            raise self.error(
                f"{what} needs {count} bytes at byte {start}, but the file ends at {len(self.data)}"
            )
        self.at = start + count
        return start

    def number(self, kind: struct.Struct, what: str) -> int:
        return kind.unpack_from(self._bytes, self.advance(kind.size, what))[0]

    def string(self, what: str, limit: int = MAX_STRING_BYTES) -> str:
        length = self.number(U64, what)
        start = self.advance(length, what)
        if length > limit:
            raise self.error(f"{what} is {length} bytes long, more than the {limit} allowed")
        try:
            return str(self._bytes[start : self.at], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(
                f"{what} is not UTF-8 (byte {start + error.start} of the file)"
            ) from None

    def value_type(self, what: str) -> ValueType:
        at, number = self.at, self.number(U32, what)
        try:
            return ValueType(number)
        except ValueError:
            raise self.error(f"{what} has the unknown value type {number} at byte {at}") from None

    def value(self, type: ValueType, what: str) -> Any:
        """A numpy scalar, a str, or for an array what `array` returns."""
        if type == ValueType.STRING:
            return self.string(what)
        if type == ValueType.ARRAY:
            return self.array(what)
        return self._numbers(type, 1, what)[0]

    def array(self, what: str, depth: int = 0) -> np.ndarray | LazyArray:
        """Numbers as a read-only view of the file, strings and arrays as a `LazyArray`."""
        kind, count = self._array_head(what, depth)
        if kind in DTYPES:
            return self._numbers(kind, count, what)
        return LazyArray(
            self.data, self.path, what, kind, self._walk(kind, count, what, depth), depth
        )

    def _array_head(self, what: str, depth: int) -> tuple[ValueType, int]:
        kind = self.value_type(what)
        count = self.number(U64, what)
        if depth >= MAX_DEPTH:
            raise self.error(f"{what} has arrays nested more than {MAX_DEPTH} deep")
        if kind not in DTYPES:
            smallest = 8 if kind == ValueType.STRING else 12
            if count > (len(self.data) - self.at) // smallest:
                raise self.error(
                    f"{what} claims {count} elements, more than a file of {len(self.data)} bytes holds"
                )
            self._items += count * (1 if kind == ValueType.STRING else _ARRAY_ITEMS)
            if self._items > MAX_ITEMS:
                raise self.error(f"{what} brings the strings in metadata above {MAX_ITEMS}")
        return kind, count

    def _walk(self, kind: ValueType, count: int, what: str, depth: int) -> array:
        """Step over `count` strings or arrays; where each begins."""
        starts = array("q")
        if (
            kind == ValueType.STRING
        ):  # inlined: this loop is most of the time it takes to open a file
            at, last, unpack, view = self.at, len(self.data) - 8, U64.unpack_from, self._bytes
            for index in range(count):
                if at > last:
                    raise self.error(f"{what}[{index}] is past the end of the file")
                starts.append(at)
                at += 8 + unpack(view, at)[0]
            self.advance(at - self.at, what)
            return starts
        for _ in range(count):
            starts.append(self.at)
            inner, length = self._array_head(what, depth + 1)
            if inner in DTYPES:
                self.advance(length * DTYPES[inner].itemsize, what)
            else:
                self._walk(inner, length, what, depth + 1)
        return starts

    def _numbers(self, kind: ValueType, count: int, what: str) -> np.ndarray:
        dtype = DTYPES[kind]
        start = self.advance(count * dtype.itemsize, what)
        values = self.data[start : self.at]
        if kind == ValueType.BOOL and count and values.max() > 1:
            wrong = start + int((values > 1).argmax())
            raise self.error(f"{what} holds {self.data[wrong]} at byte {wrong} as true or false")
        return values.view(dtype)


class LazyArray(Sequence):
    """An array of strings or of arrays in a mapped file: an element is decoded each time it is asked for.

    Raises RequestError, naming the key and the index, where a string is not UTF-8.
    """

    def __init__(
        self, data: np.ndarray, path: Path, what: str, kind: ValueType, starts: array, depth: int
    ):
        self.kind = kind
        self._data, self._path, self._what = data, path, what
        self._bytes = data.data
        self._starts, self._depth = starts, depth

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = self._starts[index]
        if self.kind == ValueType.STRING:
            end = start + 8 + U64.unpack_from(self._bytes, start)[0]
            try:
                if end - start <= MAX_STRING_BYTES:
                    return str(self._bytes[start + 8 : end], "utf-8")
            except UnicodeDecodeError:
                pass  # the cursor below says where
        cursor = Cursor(self._data, self._path, start)
        what = f"{self._what}[{range(len(self))[index]}]"
        if self.kind == ValueType.STRING:
            return cursor.string(what)
        return cursor.array(what, self._depth + 1)

    def __repr__(self) -> str:
        return f"<{len(self)} × {self.kind.name} of {self._path.name}>"


def encode(value: Any, what: str) -> bytes:
    """A value with its type before it, as it follows a key.

    numpy scalars and arrays keep their type. Of Python's own, an int becomes the first of u32, i32, u64, i64
    that holds it, a float f32, a list of ints i32 (or i64), as llama.cpp's own converter writes them.
    Raises RequestError, naming `what`, for anything else.
    """
    kind, body = _encode(value, what)
    return U32.pack(kind) + body


def string_bytes(text: str, what: str) -> bytes:
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"{what} is not Unicode text: {error.reason}") from None
    return U64.pack(len(encoded)) + encoded


def _encode(value: Any, what: str) -> tuple[ValueType, bytes]:
    if isinstance(value, str):
        return ValueType.STRING, string_bytes(value, what)
    if isinstance(value, bool):
        return ValueType.BOOL, bytes([value])
    if isinstance(value, np.generic):
        kind = _kind_of(value.dtype, what)
        return kind, np.asarray(value, DTYPES[kind]).tobytes()
    if isinstance(value, int):
        order = [ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64]
        return _python_numbers([value], order, what)
    if isinstance(value, float):
        return _python_numbers([value], [ValueType.FLOAT32], what)
    if isinstance(value, np.ndarray) or (
        isinstance(value, Sequence) and not isinstance(value, bytes)
    ):
        return ValueType.ARRAY, _encode_array(value, what)
    raise RequestError(f"{what}: a GGUF file cannot hold a value of type {type(value).__name__}")


def _encode_array(value: Any, what: str) -> bytes:
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "biuf":
        kind = _kind_of(value.dtype, what)
        return U32.pack(kind) + U64.pack(len(value)) + value.astype(DTYPES[kind]).tobytes()
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "U":
        kind, items = ValueType.STRING, value.tolist()
    else:
        kind = value.kind if isinstance(value, LazyArray) else None
        items = list(value)
    kinds = {type(item) for item in items}
    if kinds == {int} or kinds == {float}:
        order = [ValueType.INT32, ValueType.INT64] if kinds == {int} else [ValueType.FLOAT32]
        kind, body = _python_numbers(items, order, what)
    elif kinds == {str}:
        kind, body = ValueType.STRING, _strings(items, what)
    else:
        encoded = [_encode(item, f"{what}[{i}]") for i, item in enumerate(items)]
        found = {k for k, _ in encoded} | ({kind} if kind is not None else set())
        if len(found) != 1:
            names = ", ".join(sorted(k.name for k in found)) or "nothing"
            raise RequestError(
                f"{what}: the elements of an array must be of one type, these are {names}"
                + ("" if items else "; give an empty numpy array, which has a type")
            )
        kind, body = found.pop(), b"".join(b for _, b in encoded)
    return U32.pack(kind) + U64.pack(len(items)) + body


def _strings(items: list[str], what: str) -> bytes:
    """Fast: a vocabulary has hundreds of thousands."""
    try:
        encoded = [item.encode("utf-8") for item in items]
    except UnicodeEncodeError:  # which one?
        return b"".join(string_bytes(item, f"{what}[{i}]") for i, item in enumerate(items))
    return b"".join([part for one in encoded for part in (U64.pack(len(one)), one)])


def _python_numbers(
    values: list[Any], order: list[ValueType], what: str
) -> tuple[ValueType, bytes]:
    for kind in order:
        dtype = DTYPES[kind]
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                numbers = np.array(values, dtype)
            if np.array_equal(np.isfinite(numbers), np.isfinite(values)):
                return kind, numbers.tobytes()
        elif np.iinfo(dtype).min <= min(values) and max(values) <= np.iinfo(dtype).max:
            return kind, np.array(values, dtype).tobytes()
    raise RequestError(f"{what}: a number is too large for {order[-1].name}")


def _kind_of(dtype: np.dtype, what: str) -> ValueType:
    for kind, known in DTYPES.items():
        if known == dtype.newbyteorder("<"):
            return kind
    raise RequestError(f"{what}: a GGUF file cannot hold numbers of type {dtype}")
