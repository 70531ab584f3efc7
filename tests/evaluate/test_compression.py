from __future__ import annotations

import random
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from gristmill.evaluate import xz_bits
from gristmill.evaluate.compression import dictionary_size

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
TRAIN = b"".join((LIBRARY / name).read_bytes() for name in ("ast.py", "enum.py", "typing.py"))
HELDOUT = (LIBRARY / "dataclasses.py").read_bytes()[:20_000]


@pytest.mark.skipif(shutil.which("xz") is None, reason="the xz program is not installed")
def test_equals_the_xz_program() -> None:
    def size(data: bytes, *options: str) -> int:
        command = ["xz", "-c", "-T1", *options]
        return 8 * len(subprocess.run(command, input=data, capture_output=True, check=True).stdout)

    found = xz_bits(TRAIN, HELDOUT)
    assert found.alone == pytest.approx(size(HELDOUT, "-9e"), rel=0.002)
    context = "--lzma2=preset=9e,dict=1MiB"
    expected = size(TRAIN + HELDOUT, context) - size(TRAIN, context)
    assert found.with_context == pytest.approx(expected, rel=0.01)


def test_context_that_holds_the_text_costs_almost_nothing() -> None:
    found = xz_bits(TRAIN + HELDOUT, HELDOUT)
    assert found.with_context < 0.02 * found.alone
    assert xz_bits(b"", HELDOUT).with_context == pytest.approx(found.alone, rel=0.02)


def test_the_dictionary_reaches_over_all_of_the_text() -> None:
    # Incompressible text whose beginning comes again: free only if the dictionary still holds it.
    noise = random.Random(0).randbytes(1_500_000)
    found = xz_bits(noise, noise[:20_000])
    assert found.with_context < 0.05 * found.alone


@pytest.mark.parametrize("length", [0, 1 << 20, (1 << 20) + 1, 22_659_827, 1 << 30, (1 << 30) + 5])
def test_dictionary_sizes(length: int) -> None:
    size = dictionary_size(length)
    assert size >= length
    assert size < 2 * max(length, 1 << 19) or size == 1 << 20
    assert bin(size).count("1") == 1 or bin(size >> (size.bit_length() - 2)) == "0b11"
