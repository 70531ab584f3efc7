"""20,000 damaged files: each opens and reads, or is refused in one line; none hangs or swells."""

from __future__ import annotations

import random
import re
import struct
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from gristmill.errors import RequestError
from gristmill.formats.gguf import GGMLType, GGUFFile, LazyArray, write_gguf
from tests.formats.gguf.memory import peak_bytes

COUNT = 20_000
MEASURED = 10  # one in so many is run again under tracemalloc, which is slow
# Python objects for the dozen entries of a file, an exception and its message.
CONSTANT = 60_000

# What a field of eight, four or one bytes is replaced with.
WORDS = [0, 1, 7, 2**16, 2**31, 2**32 - 1, 2**32, 10**10, 2**61 + 1, 2**63 - 1, 2**63, 2**64 - 1]
INTS = [0, 1, 5, 8, 9, 12, 13, 24, 39, 255, 2**16, 2**31, 2**32 - 1]


def seeds(folder: Path) -> list[bytes]:
    """Small files that use every value type, nesting, and several tensor types."""
    metadata = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "a.count": 5,
        "a.eps": 1e-5,
        "flag": True,
        "wide": np.float64(0.5),
        "long": np.int64(-1),
        "tokens": ["a", "bc", "日本", ""],
        "scores": [0.5, 1.5],
        "flags": [True, False],
        "nested": [[1, 2], [3]],
        "names": [["x"], ["y", "z"]],
    }
    zeros = [
        ("token_embd.weight", (2, 32), GGMLType.Q8_0),
        ("blk.0.ffn_up.weight", (1, 256), GGMLType.Q4_K),
        ("blk.0.exps.weight", (2, 1, 32), GGMLType.F16),
        ("output_norm.weight", (5,), GGMLType.F32),
    ]
    tensors = [(name, shape, type, np.ones(shape, np.float32)) for name, shape, type in zeros]
    few = {
        "general.architecture": "gpt2",
        "names": [["x", "y"], ["z"]],
        "bytes": np.arange(3, dtype="i1"),
    }
    write_gguf(folder / "a.gguf", metadata, tensors)
    write_gguf(folder / "b.gguf", few, tensors[:1])
    write_gguf(folder / "c.gguf", {"tokens": ["a", "b"] * 20}, [])
    return [(folder / f"{name}.gguf").read_bytes() for name in "abc"]


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to three changes, most of them in the header; fields are hit at the offsets where they can lie."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not out:
            break
        # Strings make fields unaligned: any byte may begin one.
        at = rng.randrange(min(len(out), 900))
        kind = rng.randrange(9)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice([0, 1, 9, 127, 128, 255])
        elif kind == 2:
            out[at : at + 8] = struct.pack("<Q", rng.choice(WORDS))
        elif kind == 3:
            out[at : at + 4] = struct.pack("<I", rng.choice(INTS))
        elif kind == 4:
            del out[rng.randrange(len(out)) :]
        elif kind == 5:
            del out[at : at + rng.choice([1, 4, 8, 40])]
        elif kind == 6:
            out[at:at] = rng.randbytes(rng.choice([1, 4, 8, 40]))
        elif kind == 7:
            start = rng.randrange(len(out))
            out[at:at] = out[start : start + rng.randrange(100)]
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            out[at:] = other[start:]
    return bytes(out)


def read_everything(path: Path) -> None:
    def walk(value) -> None:
        if isinstance(value, LazyArray):
            for item in value:
                walk(item)

    file = GGUFFile.open(path)
    for value in file.metadata.values():
        walk(value)
    for name, info in file.tensors.items():
        assert file.load(name).shape == info.shape


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list]:
    """Every mutant's outcome: the refusal's text or "read", seconds, and for some peak bytes and size."""
    folder = tmp_path_factory.mktemp("fuzz")
    originals = seeds(folder)
    rng = random.Random(0)
    found: dict[str, list] = {"said": [], "seconds": [], "peaks": []}
    path = folder / "mutant.gguf"
    for number in range(COUNT):
        # A new file each time: the one before may still be mapped.
        path.unlink(missing_ok=True)
        path.write_bytes(mutate(rng.choice(originals), originals, rng))
        start = time.process_time()
        try:
            read_everything(path)
            said = "read"
        except RequestError as error:
            said = str(error)
        found["seconds"].append(time.process_time() - start)
        found["said"].append(said)
        if number % MEASURED == 0:
            with peak_bytes() as peak, suppress(RequestError):
                GGUFFile.open(path)
            found["peaks"].append((peak[0], path.stat().st_size))
    return found


def test_the_originals_are_sound(tmp_path):
    seeds(tmp_path)
    for name in "abc":
        read_everything(tmp_path / f"{name}.gguf")
        file = GGUFFile.open(tmp_path / f"{name}.gguf")
        assert file.tensors or file.metadata  # there is something to damage


def test_every_refusal_is_one_line_that_names_the_file(outcomes):
    """Anything but a RequestError would have failed the fixture."""
    assert len(outcomes["said"]) == COUNT
    for said in outcomes["said"]:
        assert said == "read" or ("mutant.gguf" in said and "\n" not in said and len(said) < 600), (
            said
        )


def test_none_hangs(outcomes):
    assert max(outcomes["seconds"]) < 1


def test_none_takes_more_than_twice_its_size(outcomes):
    assert len(outcomes["peaks"]) == COUNT // MEASURED
    worst = max(peak - 2 * size for peak, size in outcomes["peaks"])
    assert worst < CONSTANT


def test_the_mutants_reach_every_check(outcomes):
    """A fuzzer that only ever breaks the magic proves nothing: each of these was met at least once."""
    reads = outcomes["said"].count("read")
    assert COUNT // 50 < reads < COUNT // 2
    text = "\n".join(outcomes["said"])
    checks = [
        "too short", "is not a GGUF file", "GGUF version", "big-endian", "it claims", "bytes long, more than",
        "needs", "is not UTF-8", "is there twice", "is empty", "unknown value type", "as true or false",
        "elements, more than a file", "past the end", "general.alignment' must be", "is not aligned",
        "but the file at", "overlap", "dimensions, more than", "has no elements", "a tensor has no name",
        "unknown ggml type", "which is not read", "not whole blocks", r"\[\d+\] is not UTF-8", "NaN or infinity",
    ]  # fmt: skip
    assert [check for check in checks if not re.search(check, text)] == []
