"""Broken and hostile files: one line that names the file and the tensor or key, and little memory."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from gristmill.errors import RequestError
from gristmill.formats.gguf import GGMLType, GGUFFile, write_gguf
from tests.formats.gguf.memory import peak_bytes

U32, STRING, ARRAY, U8 = 4, 8, 9, 0
F32, Q4_K, IQ4_XS = 0, 12, 23


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def key(name: str | bytes, type: int, body: bytes) -> bytes:
    return text(name) + struct.pack("<I", type) + body


def elements(type: int, count: int, body: bytes = b"") -> bytes:
    return struct.pack("<IQ", type, count) + body


def tensor(name: str | bytes, dims: tuple[int, ...], type: int = F32, offset: int = 0) -> bytes:
    head = text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return head + struct.pack("<IQ", type, offset)


def build(
    path: Path,
    keys: list[bytes] = (),
    tensors: list[bytes] = (),
    *,
    data: int = 256,
    version: int = 3,
    magic: bytes = b"GGUF",
    counts: tuple[int, int] | None = None,
) -> Path:
    """A file from its parts, with `data` bytes of tensor data; `counts` (tensors, keys) may lie."""
    header = struct.pack("<QQ", *(counts or (len(tensors), len(keys))))
    out = magic + struct.pack("<I", version) + header + b"".join([*keys, *tensors])
    path.write_bytes(out + bytes(-len(out) % 32 + data))
    return path


def nested(depth: int) -> bytes:
    return elements(ARRAY, 1, nested(depth - 1)) if depth else elements(U8, 1, b"\1")


TEN_BILLION = 10_000_000_000
GOOD = key("a", U32, b"\5\0\0\0")
HOSTILE = {
    "magic": (dict(magic=b"GGML"), "is not a GGUF file: it begins with b'GGML'"),
    "version 1": (dict(version=1), "GGUF version 1; versions 2 and 3 are read"),
    "version 4": (dict(version=4), "GGUF version 4; versions 2 and 3 are read"),
    "big endian": (dict(version=3 << 24), "big-endian GGUF file; convert it to little-endian"),
    "keys": (dict(counts=(0, TEN_BILLION)), "claims 0 tensors and 10000000000 keys, more than its"),
    "tensors": (dict(counts=(TEN_BILLION, 0)), "claims 10000000000 tensors and 0 keys"),
    "most": (dict(counts=(2**64 - 1, 2**64 - 1)), "can hold"),
    "one key too many": (
        dict(keys=[GOOD], counts=(0, 2)),
        r"key '' is empty, before byte|unknown value type",
    ),
    "key length": (dict(keys=[struct.pack("<Q", 2**63) + b"a"]), "key 1 of 1 needs 9223372036854775"),
    "long key": (dict(keys=[key("k" * 70_000, U32, bytes(4))]), "70000 bytes long, more than the 65535"),
    "key bytes": (dict(keys=[key(b"a\xff", U32, bytes(4))]), r"key 1 of 1 is not UTF-8 .byte 33 "),
    "empty key": (dict(keys=[key("", U32, bytes(4))]), "key '' is empty"),
    "twice": (dict(keys=[GOOD, GOOD]), "key 'a' is there twice"),
    "value type": (dict(keys=[key("k", 13, bytes(8))]), "key 'k' has the unknown value type 13"),
    "element type": (
        dict(keys=[key("k", ARRAY, elements(99, 1, bytes(8)))]),
        "key 'k' has the unknown value type 99 at byte",
    ),
    "boolean": (dict(keys=[key("k", 7, b"\2")]), "key 'k' holds 2 at byte 37 as true or false"),
    "booleans": (
        dict(keys=[key("k", ARRAY, elements(7, 3, b"\0\1\7"))]),
        "key 'k' holds 7 at byte 51 as true or false",
    ),
    "string length": (
        dict(keys=[key("k", STRING, struct.pack("<Q", TEN_BILLION))]),
        "key 'k' needs 10000000000 bytes at byte 45, but the file ends at",
    ),
    "string bytes": (dict(keys=[key("k", STRING, text(b"ok\xc3("))]), "key 'k' is not UTF-8"),
    "numbers": (
        dict(keys=[key("k", ARRAY, elements(12, TEN_BILLION))]),
        "key 'k' needs 80000000000 bytes",
    ),
    "overflowing numbers": (dict(keys=[key("k", ARRAY, elements(12, 2**61 + 1))]), "key 'k' needs 1844"),
    "strings": (
        dict(keys=[key("k", ARRAY, elements(STRING, TEN_BILLION))]),
        "key 'k' claims 10000000000 elements, more than a file of",
    ),
    "a string in an array": (
        dict(keys=[key("k", ARRAY, elements(STRING, 2, text("a") + struct.pack("<Q", 2**50)))]),
        "key 'k' needs 112589990684",
    ),
    "an array past the end": (
        dict(keys=[key("k", ARRAY, elements(STRING, 30, text("a" * 300)))], data=0),
        r"key 'k'\[\d\] is past the end of the file",
    ),
    "arrays": (
        dict(keys=[key("k", ARRAY, elements(ARRAY, TEN_BILLION))]),
        "key 'k' claims 10000000000 elements",
    ),
    "an array in an array": (
        dict(keys=[key("k", ARRAY, elements(ARRAY, 1, elements(U32, TEN_BILLION)))]),
        "key 'k' needs 40000000000 bytes",
    ),
    "depth": (dict(keys=[key("k", ARRAY, nested(20))]), "key 'k' has arrays nested more than 8 deep"),
    "great depth": (dict(keys=[key("k", ARRAY, nested(900))]), "nested more than 8 deep"),
    "alignment 0": (
        dict(keys=[key("general.alignment", U32, bytes(4))]),
        "'general.alignment' must be a power of two as uint32, not '0'",
    ),
    "alignment 24": (dict(keys=[key("general.alignment", U32, b"\x18\0\0\0")]), "not '24'"),
    "alignment type": (dict(keys=[key("general.alignment", STRING, text("32"))]), "not 'str'"),
    "alignment past the end": (
        dict(
            keys=[key("general.alignment", U32, struct.pack("<I", 1 << 31))],
            tensors=[tensor("w", (64,))],
        ),
        "tensor 'w' ends at byte 2147483904",
    ),
    "name bytes": (dict(tensors=[tensor(b"\xfe", (64,))]), "the name of tensor 1 of 1 is not UTF-8"),
    "long name": (dict(tensors=[tensor("n" * 64, (64,))]), "is 64 bytes long, more than the 63"),
    "no name": (dict(tensors=[tensor("", (64,))]), "a tensor has no name"),
    "name twice": (
        dict(tensors=[tensor("w", (8,)), tensor("w", (8,), offset=32)]),
        "tensor 'w' is there twice",
    ),
    "dimensions": (dict(tensors=[tensor("w", (1,) * 5)]), "tensor 'w' has 5 dimensions, more than 4"),
    "many dimensions": (
        dict(tensors=[text("w") + struct.pack("<I", 2**32 - 1) + bytes(64)]),
        "tensor 'w' has 4294967295 dimensions",
    ),
    "no elements": (dict(tensors=[tensor("w", (4, 0))]), r"no elements: its shape is \[0, 4\]"),
    "wrapping product": (
        dict(tensors=[tensor("w", (2**32, 2**32))]),
        "tensor 'w' ends at byte 73786976294838206",
    ),
    "size": (dict(tensors=[tensor("w", (65,))]), r"tensor 'w' ends at byte \d+, but the file at \d+"),
    "offset": (dict(tensors=[tensor("w", (8,), offset=2**63)]), "tensor 'w' ends at byte 9223372"),
    "unaligned": (dict(tensors=[tensor("w", (8,), offset=4)]), "'w' is not aligned to 32 bytes"),
    "overlap": (
        dict(tensors=[tensor("a", (16,)), tensor("b", (8,), offset=32)]),
        "tensors 'a' and 'b' overlap",
    ),
    "type": (dict(tensors=[tensor("w", (64,), 77)]), "'w' is of the unknown ggml type 77; read are F32,"),
    "removed type": (dict(tensors=[tensor("w", (64,), 4)]), "tensor 'w' is of the unknown ggml type 4"),
    "type not read": (
        dict(tensors=[tensor("w", (256,), IQ4_XS)]),
        "'w' is of type IQ4_XS, which is not read; read are .*MXFP4: convert the model",
    ),
    "partial block": (
        dict(tensors=[tensor("w", (128, 2), Q4_K)]),
        r"'w' has rows of 128, which are not whole blocks of 256 .Q4_K.",
    ),
    "a name that would break the line": (
        dict(tensors=[tensor("a\nb", (64,), 77)]),
        r"tensor 'a\\nb' is of the unknown",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, case):
    parts, says = HOSTILE[case]
    path = build(tmp_path / "a.gguf", **parts)
    with peak_bytes() as peak, pytest.raises(RequestError, match=says) as error:
        GGUFFile.open(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    assert error.value.exit_code == 2
    assert peak[0] < 2 * path.stat().st_size + 50_000


def test_a_string_in_an_array_that_is_not_utf8_is_named_when_read(tmp_path):
    keys = [key("k", ARRAY, elements(STRING, 3, text("a") + text(b"\xff") + text("c")))]
    array = GGUFFile.open(build(tmp_path / "a.gguf", keys)).metadata["k"]
    assert array[0] == "a" and array[2] == "c"
    for ask in (lambda: array[1], lambda: array[-2], lambda: list(array), lambda: array[:2]):
        with pytest.raises(RequestError, match=r"key 'k'\[1\] is not UTF-8 .byte 66 of the file"):
            ask()


def test_every_truncation_is_refused_by_name(tmp_path):
    """At any byte: of the header by what it was reading, of the data by the tensor."""
    keys = [GOOD, key("k", ARRAY, elements(STRING, 2, text("ab" * 20) + text("c")))]
    keys += [key("n", ARRAY, elements(ARRAY, 1, elements(U32, 2, bytes(8))))]
    path = build(tmp_path / "a.gguf", keys, [tensor("w", (64,))])
    whole = path.read_bytes()
    assert GGUFFile.open(path).tensors["w"].nbytes == 256
    seen = set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(RequestError) as error:
            GGUFFile.open(path)
        message = str(error.value)
        assert message.startswith(str(path)) and message.endswith(
            "download or convert the file again"
        )
        seen |= {word for word in ("too short", "keys", "'k'", "'n'", "'w'") if word in message}
    assert len(seen) == 5


SCALES = [
    *((type, "d", bad) for type in GGMLType if "d" in type.layout.names for bad in (np.nan, np.inf, -np.inf)),
    (GGMLType.Q4_1, "m", np.inf),
    (GGMLType.Q5_1, "m", np.nan),
    *((type, "dmin", -np.inf) for type in (GGMLType.Q2_K, GGMLType.Q4_K, GGMLType.Q5_K)),
    *((type, "x", bad) for type in (GGMLType.F32, GGMLType.F16) for bad in (np.nan, np.inf, -np.inf)),
    *((GGMLType.BF16, "x", bits) for bits in (0x7F80, 0xFF80, 0x7FC1)),
    (GGMLType.MXFP4, "e", 255),
]  # fmt: skip


@pytest.mark.parametrize("block", [0, 40_000])
@pytest.mark.parametrize(
    ("type", "field", "bad"), SCALES, ids=[f"{t.name} {f} {bad}" for t, f, bad in SCALES]
)
def test_scales_and_values_that_are_no_numbers(tmp_path, type, field, bad, block):
    """In the first block or one far in; and the largest finite scale is none of these."""
    rows, columns = 40_002 if block else 2, type.block_size
    blocks = np.zeros(rows, type.layout)
    largest = {"<f2": 65504, "<f4": 3e38, "<u2": 0x7F7F, "|u1": 253}[type.layout[field].str]
    blocks[field] = largest
    path = tmp_path / "a.gguf"

    def loaded() -> np.ndarray:
        raw = blocks.view(np.uint8).reshape(rows, -1)
        write_gguf(
            path, {}, [("fine", (1,), GGMLType.F32, np.ones(1)), ("w", (rows, columns), type, raw)]
        )
        file = GGUFFile.open(path)
        assert file.load("fine") == 1 and np.array_equal(file.raw("w"), raw)
        return file.load("w")

    assert np.isfinite(loaded()).all()
    blocks[field][block + 1] = bad
    with pytest.raises(RequestError, match=rf"'w' holds NaN or infinity among its .*{type.name}"):
        loaded()


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(RequestError, match=r"none.gguf does not exist; give a .gguf file"):
        GGUFFile.open(tmp_path / "none.gguf")
    with pytest.raises(RequestError, match="is not a file"):
        GGUFFile.open(tmp_path)
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(RequestError, match=r"too short for a GGUF file .0 bytes."):
        GGUFFile.open(tmp_path / "empty.gguf")


# Files as large as they say, made to be slow or to swell: each of these entries is really there.
SWELLING = {
    "short strings": dict(keys=[key("k", ARRAY, elements(STRING, 200_000, text("ab") * 200_000))]),
    "empty strings": dict(keys=[key("k", ARRAY, elements(STRING, 400_000, bytes(3_200_000)))]),
    "empty arrays": dict(
        keys=[key("k", ARRAY, elements(ARRAY, 100_000, elements(U8, 0) * 100_000))]
    ),
    "bytes": dict(keys=[key("k", ARRAY, elements(U8, 4_000_000, bytes(4_000_000)))]),
    "booleans": dict(keys=[key("k", ARRAY, elements(7, 4_000_000, bytes(4_000_000)))]),
    "wide text": dict(keys=[key("k", ARRAY, elements(STRING, 1, text("🙂" + "a" * 2_000_000)))]),
}


@pytest.mark.parametrize("case", SWELLING)
def test_a_full_header_takes_no_more_than_twice_its_size(tmp_path, case):
    path = build(tmp_path / "a.gguf", **SWELLING[case])
    with peak_bytes() as peak:
        file = GGUFFile.open(path)
    assert len(file.metadata["k"]) >= 1
    assert peak[0] < 2 * path.stat().st_size


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (
            dict(keys=[key("k", ARRAY, elements(STRING, 2_100_000, bytes(16_800_000)))]),
            "key 'k' brings the strings in metadata above 2097152",
        ),
        (
            dict(keys=[key("k", ARRAY, elements(ARRAY, 140_000, elements(U8, 0) * 140_000))]),
            "key 'k' brings the strings in metadata above 2097152",
        ),
        (
            dict(keys=[key("k", STRING, text(b"a" * (1 << 25) + b"a"))]),
            "key 'k' is 33554433 bytes long, more than the 33554432 allowed",
        ),
        (
            dict(keys=[key(f"{n}", U8, b"\0") for n in range(20_001)]),
            "0 tensors and 20001 keys are more than the 20000 allowed",
        ),
    ],
)
def test_more_than_any_model_has_is_refused_at_once(tmp_path, parts, says):
    path = build(tmp_path / "a.gguf", **parts)
    start = time.process_time()
    with pytest.raises(RequestError, match=says):
        GGUFFile.open(path)
    # Not a measure of speed: a minute here would be a walk over what should have been refused unread.
    assert time.process_time() - start < 5
