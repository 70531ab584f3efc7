"""20,000 damaged safetensors files: what we read the safetensors library reads the same, what it refuses we
refuse in one line; none hangs or swells."""

from __future__ import annotations

import json
import random
import re
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from gristmill.errors import RequestError
from gristmill.formats.safetensors import SafetensorsFile
from tests.formats.gguf.memory import peak_bytes

COUNT = 20_000
MEASURED = 10  # one in so many is run again under tracemalloc, which is slow
# Python objects for the entries of a file, an exception and its message.
CONSTANT = 60_000

LENGTHS = [0, 1, 2, 7, 8, 9, 255, 10**8, 10**8 + 1, 2**31, 2**32, 2**63, 2**64 - 9, 2**64 - 1]
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    8,
    16,
    24,
    -1,
    10**10,
    2**31,
    2**32,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
]
OTHER_VALUES = [1.0, 1e400, float("nan"), True, None, "1", [], [[1]], {}, {"a": [1]}, "é🥊", -0.0]
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "U16",
    "U32",
    "U64",
    "BOOL",
    "C64",
]
DTYPES += ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "f32", "F31", ""]
NAMES = ["a", "w", "", "__metadata__", "dtype", "é", "\n", "x" * 100, "\ud800", "日本", '"', "\\"]
# Written into the header as they are.
SNIPPETS = [
    b"1e400",
    b"-0",
    b"01",
    b"1.0",
    b"NaN",
    b"Infinity",
    b"[" * 500,
    b'{"a":' * 200,
    b"\\ud800",
    b"\\u0041",
]
SNIPPETS += [
    b",",
    b":",
    b"}",
    b"]",
    b'"',
    b" ",
    b"\n",
    b"\t ",
    b"\xff",
    b"\xc3\xa9",
    b"\\",
    b"null",
    b"\0",
    b"0",
    b"\r",
]


def seeds() -> list[tuple[bytes, bytes]]:
    """Headers and data: several dtypes, scalars, nothing, names in Unicode, metadata, unaligned tensors."""
    tensors = {
        "model.embed.weight": torch.randn(4, 3),
        "é": torch.arange(3),
        "half": torch.ones(2, 2, dtype=torch.bfloat16),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "none": torch.empty(0, 2),
        "mask": torch.tensor([True, False]),
        "byte": torch.tensor([7], dtype=torch.uint8),
    }
    files = [save(tensors, {"format": "pt", "by": "é\n"}), save({"a": torch.ones(2)}), save({})]
    odd = {
        "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "f": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    text = json.dumps(odd).encode() + b" "
    files.append(struct.pack("<Q", len(text)) + text + bytes(range(9)))
    return [
        (file[8 : 8 + (n := int.from_bytes(file[:8], "little"))], file[8 + n :]) for file in files
    ]


def edit(header: dict, rng: random.Random) -> str:
    """The header as text after one change to what it says."""
    entries = list(header.items())
    rng.shuffle(entries)
    names = [name for name, _ in entries if name != "__metadata__"]
    kind = rng.randrange(8)
    if kind == 0 or not names:
        entries.append((rng.choice(NAMES), rng.choice([*header.values(), *OTHER_VALUES])))
    else:
        number = next(i for i, (name, _) in enumerate(entries) if name == names[0])
        name, value = entries[number]
        value = json.loads(json.dumps(value))
        field = rng.choice(["shape", "data_offsets"])
        if kind == 1:
            value["dtype"] = rng.choice(DTYPES)
        elif kind == 2:
            value["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))]
        elif kind == 3:
            sizes = value["shape"]
            value["shape"] = [1, *reversed(sizes)] if rng.random() < 0.7 else sizes * 40
        elif kind == 4:
            value[field] = [n + rng.choice([0, 0, 1, -1, 8, 10**10]) for n in value[field]]
        elif kind == 5:
            value[rng.choice(["dtype", "shape", "data_offsets", "x"])] = rng.choice(OTHER_VALUES)
        elif kind == 6:
            del value[rng.choice(list(value))]
        else:
            name = rng.choice(NAMES)
        fields = list(value.items())
        rng.shuffle(fields)
        entries[number] = (name, dict(fields))
    space = rng.choice(["", " ", "\n\t"])
    dump = {"ensure_ascii": rng.random() < 0.5, "separators": (f"{space},", f":{space}")}
    return (
        "{" + ",".join(f"{json.dumps(n, **dump)}:{json.dumps(v, **dump)}" for n, v in entries) + "}"
    )


def mutate(header: bytes, data: bytes, rng: random.Random) -> bytes:
    """A file with one to three changes; its length field is right unless it is what was changed."""
    length = None
    cut = None
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.randrange(12)
        at = rng.randrange(len(header) + 1)
        if kind < 5:
            with suppress(ValueError, AttributeError, TypeError, LookupError):
                header = edit(json.loads(header), rng).encode("utf-8", "surrogatepass")
        elif kind == 5:
            header = header[:at] + rng.choice(SNIPPETS) + header[at:]
        elif kind == 6:
            header = header[:at] + rng.choice(SNIPPETS) + header[at + rng.randrange(4) :]
        elif kind == 7 and header:
            at = min(at, len(header) - 1)
            header = header[:at] + bytes([header[at] ^ 1 << rng.randrange(8)]) + header[at + 1 :]
        elif kind == 8:
            end = at + rng.randrange(80)
            header = header[:end] + header[at:end] + header[end:]
        elif kind == 9:
            data = rng.choice([data[:-1], data + b"\0", rng.randbytes(len(data)), data * 2])
        elif kind == 10:
            length = rng.choice([*LENGTHS, len(header) + rng.choice([-1, 1, len(data)])])
        elif rng.random() < 0.2:
            header = re.sub(rb'("shape": ?\[[^]]*\])', rb"\1,\1", header, count=1)
        elif rng.random() < 0.5:
            cut = rng.randrange(8 + len(header) + len(data))
        else:
            header += b" " * rng.randrange(9)
    length = max(0, len(header) if length is None else length)
    return (struct.pack("<Q", length) + header + data)[:cut]


def as_bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {
        name: (
            x.dtype,
            x.shape,
            x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b"",
        )
        for name, x in tensors.items()
    }


def read_all(path: Path) -> dict[str, torch.Tensor]:
    file = SafetensorsFile.open(path)
    return {name: file.load(name) for name in file.tensors}


def theirs(path: Path) -> dict[str, torch.Tensor] | None:
    """What the library reads; None when it refuses, in whichever way."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception:
        return None


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list]:
    """Every mutant: the refusal's text or "read", whether the library agrees, seconds, some peaks and sizes."""
    path = tmp_path_factory.mktemp("fuzz") / "mutant.safetensors"
    originals = seeds()
    rng = random.Random(0)
    found: dict[str, list] = {"said": [], "agreed": [], "seconds": [], "peaks": []}
    for number in range(COUNT):
        # A new file each time: the one before may still be mapped.
        path.unlink(missing_ok=True)
        path.write_bytes(mutate(*rng.choice(originals), rng))
        expected = theirs(path)
        start = time.process_time()
        try:
            tensors = read_all(path)
            said = "read"
        except RequestError as error:
            tensors, said = {}, str(error)
        found["seconds"].append(time.process_time() - start)
        found["said"].append(said)
        if said == "read":
            found["agreed"].append(expected is not None and as_bits(tensors) == as_bits(expected))
        if number % MEASURED == 0:
            with peak_bytes() as peak, suppress(RequestError):
                read_all(path)
            found["peaks"].append((peak[0], path.stat().st_size))
    return found


def test_every_refusal_is_one_line_that_names_the_file(outcomes):
    """Anything but a RequestError would have failed the fixture."""
    assert len(outcomes["said"]) == COUNT
    for said in outcomes["said"]:
        right = "mutant.safetensors" in said and "\n" not in said and len(said) < 900
        assert said == "read" or right, said


def test_what_is_read_is_what_the_library_reads(outcomes):
    """Which says at once that all it refuses is refused."""
    assert len(outcomes["agreed"]) > COUNT // 10 and all(outcomes["agreed"])


def test_none_hangs(outcomes):
    assert max(outcomes["seconds"]) < 1


def test_none_takes_more_than_twice_its_size(outcomes):
    assert len(outcomes["peaks"]) == COUNT // MEASURED
    assert max(peak - 2 * size for peak, size in outcomes["peaks"]) < CONSTANT


def test_the_mutants_reach_every_check(outcomes):
    """A fuzzer that only ever breaks the length proves nothing: each of these was met at least once."""
    assert outcomes["said"].count("read") < 3 * COUNT // 4
    text = "\n".join(outcomes["said"])
    checks = [
        "too short", "claim a header of", "stands where", "is no text, or does not end", "is not Unicode text",
        "must be a list of whole numbers", "the header: .* is there twice", "tensor .*: 'shape' is there twice",
        "the header goes on", r"dtype 'F4'; read", r"dtype 'F31'; read", "unknown field", "lacks its dtype",
        r"needs \d+ bytes, but its data_offsets", "but the file at", "overlap", "leave a gap", "__metadata__",
        r"shape \[\] needs", "larger than any memory",
    ]  # fmt: skip
    assert [check for check in checks if not re.search(check, text)] == []
