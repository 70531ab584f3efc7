"""Write a GGUF file (version 3, little-endian), one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gristmill.errors import RequestError, WorkError
from gristmill.files import write_with
from gristmill.formats.gguf.blocks import WRITABLE, quantize
from gristmill.formats.gguf.read import ALIGNMENT, MAX_DIMS, MAX_KEY_BYTES, MAX_NAME_BYTES
from gristmill.formats.gguf.types import GGMLType
from gristmill.formats.gguf.values import U32, U64, encode, shown, string_bytes

Source = np.ndarray | Callable[[], np.ndarray]

# Elements that a thread quantizes between two writes: a multiple of every block size, 1 MB of float32.
_SLAB = 1 << 18


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, tuple[int, ...], GGMLType, Source]],
    threads: int = 1,
) -> None:
    """Write `path` whole or not at all. Order of keys and tensors is kept; `threads` quantize.

    `metadata`: values as `GGUFFile.metadata` or `.typed_metadata` has them; plain Python ones are written
    as llama.cpp's converter would (int u32, float f32, list of ints i32); numpy ones keep their type.
    `general.alignment` (uint32) applies where given.

    `tensors`: (name, row-major shape, type, source). The source is an array, or a function called once, when
    its turn comes, so that peak memory is about one tensor. The array is either floating-point of that shape,
    quantized here, or uint8 of shape [*shape[:-1], bytes of a row], copied as it is (any type).

    Raises RequestError, naming file and tensor or key, for what GGUF or the type cannot hold; WorkError when
    the disk fails.
    """
    path = Path(path)
    entries = [
        (name, tuple(shape), GGMLType(type), source) for name, shape, type, source in tensors
    ]
    alignment = _alignment(path, metadata)
    header = _header(path, metadata, entries, alignment)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(header)
            for name, shape, type, source in entries:
                file.write(bytes(-file.tell() % alignment))
                what = f"{path}: tensor {shown(name)}"
                # The array has no name here: a second would be made while this one is held.
                _write_tensor(
                    file,
                    what,
                    shape,
                    type,
                    np.asarray(source() if callable(source) else source),
                    threads,
                )
            file.write(bytes(-file.tell() % alignment))

    try:
        write_with(path, write)
    except OSError as error:
        raise WorkError(f"{path} cannot be written: {error.strerror or error}") from error


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if isinstance(value, np.generic) and value.dtype == np.dtype("<u4"):
        value = value.item()
    if type(value) is not int or not 8 <= value <= 1 << 20 or value & (value - 1):
        raise RequestError(
            f"{path}: general.alignment must be a power of two of at least 8, not {value!r}"
        )
    return value


def _header(
    path: Path,
    metadata: Mapping[str, Any],
    entries: list[tuple[str, tuple[int, ...], GGMLType, Source]],
    alignment: int,
) -> bytes:
    out = bytearray(b"GGUF" + U32.pack(3) + U64.pack(len(entries)) + U64.pack(len(metadata)))
    for key, value in metadata.items():
        what = f"{path}: key {shown(key)}"
        if not 0 < len(key.encode(errors="replace")) <= MAX_KEY_BYTES:
            raise RequestError(f"{what} must have 1 to {MAX_KEY_BYTES} bytes")
        out += string_bytes(key, what) + encode(value, what)
    offset, seen = 0, set()
    for name, shape, type, _ in entries:
        what = f"{path}: tensor {shown(name)}"
        if not 0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES:
            raise RequestError(f"{what}: a name must have 1 to {MAX_NAME_BYTES} bytes")
        if name in seen:
            raise RequestError(f"{what} is given twice")
        seen.add(name)
        if len(shape) > MAX_DIMS or any(size < 1 for size in shape):
            raise RequestError(
                f"{what} has the shape {list(shape)}; GGUF takes up to {MAX_DIMS} dimensions, none empty"
            )
        if (shape[-1] if shape else 1) % type.block_size:
            raise RequestError(
                f"{what} has rows of {shape[-1] if shape else 1}, which are not whole blocks of "
                f"{type.block_size} ({type.name}); choose a type with smaller blocks, or F16"
            )
        out += string_bytes(name, what) + U32.pack(len(shape))
        out += b"".join(U64.pack(size) for size in reversed(shape))
        out += U32.pack(type) + U64.pack(offset)
        nbytes = type.nbytes(_product(shape))
        offset += nbytes + -nbytes % alignment
    return bytes(out) + bytes(-len(out) % alignment)


def _write_tensor(
    file: BinaryIO,
    what: str,
    shape: tuple[int, ...],
    type: GGMLType,
    array: np.ndarray,
    threads: int,
) -> None:
    if array.dtype == np.uint8:
        rows = (*shape[:-1], type.nbytes(shape[-1] if shape else 1))
        _check_shape(what, array.shape, rows, f"the bytes of {type.name}")
        file.write(np.ascontiguousarray(array).data)
        return
    _check_shape(what, array.shape, shape, "values")
    if type not in WRITABLE:
        raise RequestError(
            f"{what}: {type.name} is read but not written; written are "
            + ", ".join(t.name for t in GGMLType if t in WRITABLE)
        )
    flat = array.reshape(-1)
    slab = _SLAB * threads
    for start in range(0, len(flat), slab):
        try:
            blocks = quantize(flat[start : start + slab], type, threads=threads)
        except RequestError as error:
            raise RequestError(f"{what}: {error}") from None
        file.write(blocks.data)


def _check_shape(what: str, got: tuple[int, ...], want: tuple[int, ...], kind: str) -> None:
    if got != want:
        raise RequestError(
            f"{what}: its source has the shape {list(got)}, not {list(want)} ({kind})"
        )


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
