"""The header of a safetensors file, read strictly.

Every count, length and offset is compared with the file before anything is made of it, and what is accepted the
safetensors library accepts too: where JSON readers differ (-0, NaN, half a surrogate pair, a key twice), this one
refuses.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from gristmill.errors import RequestError
from gristmill.formats.gguf.values import shown

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
# A tensor costs some 450 bytes of Python objects, however short its entry: 45 MB for as many as these. The
# largest unsharded models (48 layers of 128 experts, each with scales) have 40,000.
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 4096
MAX_METADATA = 10_000  # entries
MAX_METADATA_BYTES = 1 << 24  # in one of them; some training tools store their whole configuration
_LIST_BYTES = 256  # a shape; no model's tensor has more than five dimensions
_LARGEST = 2**63 - 1  # torch's sizes are int64

_SPACE = re.compile(rb"[ \t\r\n]*+")
# Possessive throughout: a string that does not end is refused in one pass.
_STRING = re.compile(rb'[ \t\r\n]*+"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"')
_LIST = re.compile(rb"[ \t\r\n]*+\[([0-9, \t\r\n]*+)\]")
_WHOLE = re.compile(rb"[ \t\r\n]*+(?:0|[1-9][0-9]*+)[ \t\r\n]*+")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte, from the start of the file
    nbytes: int


def header_length(path: Path, start: bytes, size: int) -> int:
    """What the first eight bytes of a file of `size` bytes say. Raises RequestError unless it can be so."""
    again = "download or convert the file again"
    if start == b"version ":
        raise RequestError(
            f"{path} is a Git LFS pointer, not the file; fetch it with: git lfs pull"
        )
    if size < 10:
        raise RequestError(f"{path} is too short for a safetensors file ({size} bytes); {again}")
    length = int.from_bytes(start, "little")
    if length > size - 8:
        raise RequestError(
            f"{path} is no safetensors file, or incomplete: bytes 0 to 7 claim a header of {length} bytes, but "
            f"the file has {size}; {again}"
        )
    if length > MAX_HEADER_BYTES:
        raise RequestError(
            f"{path}: its header of {length} bytes is larger than the {MAX_HEADER_BYTES} allowed"
        )
    return length


class _Header:
    """The header, read once from its first byte to its last.

    The grammar is so narrow that no general JSON reader is needed: nothing is made of what is not asked for (a
    list of lists is refused at its first bracket), and every refusal knows its byte.
    """

    def __init__(self, path: Path, data: bytes):
        self.path, self.data, self.at = path, data, 0

    def error(self, problem: str) -> RequestError:
        return RequestError(
            f"{self.path} at byte {8 + self.at}: {problem}; download or convert the file again"
        )

    def skip_space(self) -> None:
        self.at = _SPACE.match(self.data, self.at).end()  # type: ignore[union-attr]  # matches anything

    def next(self, token: bytes) -> bool:
        """Whether `token` comes next, after white space; if so it is passed."""
        if not self.data.startswith(token, self.at):
            self.skip_space()
            if not self.data.startswith(token, self.at):
                return False
        self.at += len(token)
        return True

    def expect(self, token: bytes, what: str) -> None:
        if not self.next(token):
            found = self.data[self.at : self.at + 1].decode("latin-1") or "the end"
            raise self.error(f"{what}: {found!r} stands where {token.decode()!r} belongs")

    def string(self, what: str, limit: int) -> str:
        found = _STRING.match(self.data, self.at, self.at + limit)
        if not found:
            self.expect(b'"', what)
            raise self.error(f"{what} is no text, or does not end within {limit} bytes")
        try:
            value = found[1].decode("utf-8")
            if "\\" in value:
                value = json.loads(f'"{value}"')
                value.encode("utf-8")  # refuses half a surrogate pair, which JSON can spell
        except ValueError as error:
            raise self.error(f"{what} is not Unicode text") from error
        self.at = found.end()
        return value

    def wholes(self, what: str) -> tuple[int, ...]:
        """A list of whole numbers, none of them negative (not even -0) or beyond torch's int64."""
        found = _LIST.match(self.data, self.at, self.at + _LIST_BYTES)
        numbers = found[1].split(b",") if found and found[1].strip() else []
        right = found and all(_WHOLE.fullmatch(number) for number in numbers)
        values = tuple(map(int, numbers)) if right else ()
        if not found or not right or max(values, default=0) > _LARGEST:
            raise self.error(f"{what} must be a list of whole numbers from 0 to 2^63 - 1")
        self.at = found.end()
        return values

    def keys(self, what: str) -> Iterator[str]:
        """The keys of an object. The caller reads each one's value before it asks for the next."""
        seen: set[str] = set()
        self.expect(b"{", what)
        while not self.next(b"}"):
            if seen:
                self.expect(b",", what)
            key = self.string(f"{what}: a name", MAX_NAME_BYTES)
            if key in seen:
                raise self.error(f"{what}: {shown(key)} is there twice")
            seen.add(key)
            self.expect(b":", what)
            yield key


def parse_header(
    path: Path, data: bytes, size: int
) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """`data`, the header of a file of `size` bytes, as metadata and tensors. Raises RequestError."""
    header = _Header(path, data)
    metadata: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    data_start = 8 + len(data)
    for name in header.keys("the header"):
        if name == "__metadata__":
            for key in header.keys(name):
                if len(metadata) == MAX_METADATA:
                    raise header.error(f"{name} has more than the {MAX_METADATA} entries allowed")
                metadata[key] = header.string(f"{name}: {shown(key)}", MAX_METADATA_BYTES)
            continue
        if len(tensors) == MAX_TENSORS:
            raise header.error(f"there are more than the {MAX_TENSORS} tensors allowed")
        tensors[name] = _entry(header, f"tensor {shown(name)}", data_start, size)
    header.skip_space()
    if header.at != len(data):
        raise header.error("the header goes on after its end")
    _check_cover(path, tensors, data_start, size)
    return metadata, tensors


def _entry(header: _Header, what: str, data_start: int, size: int) -> TensorInfo:
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None
    offsets: tuple[int, ...] | None = None
    for key in header.keys(what):
        if key == "dtype":
            named = header.string(f"{what}: its dtype", MAX_NAME_BYTES)
            dtype = DTYPES.get(named)
            if dtype is None:
                known = ", ".join(DTYPES)
                raise header.error(f"{what} is of dtype {shown(named)}; read are {known}")
        elif key == "shape":
            shape = header.wholes(f"{what}: its shape")
        elif key == "data_offsets":
            offsets = header.wholes(f"{what}: its data_offsets")
        else:
            raise header.error(f"{what} has the unknown field {shown(key)}")
    if dtype is None or shape is None or offsets is None or len(offsets) != 2:
        raise header.error(f"{what} lacks its dtype, shape or two data_offsets")
    begin, end = (data_start + offset for offset in offsets)
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > _LARGEST:
        raise header.error(f"{what} of shape {list(shape)} is larger than any memory")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != end - begin:
        raise header.error(
            f"{what} of shape {list(shape)} needs {nbytes} bytes, but its data_offsets {list(offsets)} "
            f"give it {end - begin}"
        )
    if end > size:
        raise header.error(f"{what} ends at byte {end}, but the file at {size}")
    return TensorInfo(dtype, shape, begin, nbytes)


def _check_cover(path: Path, tensors: dict[str, TensorInfo], start: int, size: int) -> None:
    """The data is covered without gap or overlap, so that no byte is unaccounted for or has two meanings."""
    spans = sorted((info.offset, info.offset + info.nbytes, name) for name, info in tensors.items())
    edges = [(start, start, "the header"), *spans, (size, size, "the end of the file")]
    for (_, end, before), (begin, _, after) in pairwise(edges):
        if begin != end:
            raise RequestError(
                f"{path}: {shown(before)} ends at byte {end}, but {shown(after)} begins at byte {begin}: they "
                f"{'overlap' if begin < end else 'leave a gap'}; download or convert the file again"
            )
