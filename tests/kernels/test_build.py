"""The build where something is missing: it must succeed, build nothing, and say so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE = Path(sys.executable).with_name("cmake")


def configure(build: Path, *definitions: str, **environment: str) -> str:
    """Run CMake's first step as pip does, and return what it said. Raises when it fails."""
    command = [str(CMAKE), "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *definitions]
    command.append(f"-DCMAKE_MAKE_PROGRAM={CMAKE.with_name('ninja')}")
    command.append(f"-DPython_EXECUTABLE={sys.executable}")
    done = subprocess.run(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def has_native_target(build: Path) -> bool:
    return "_native" in (build / "build.ninja").read_text()


@pytest.mark.parametrize("compiler", ["nothing-of-this-name", "/bin/false"], ids=["none", "broken"])
def test_without_a_working_compiler_nothing_is_built(tmp_path: Path, compiler: str):
    said = configure(tmp_path, CXX=compiler)
    assert "No working C++ compiler" in said
    assert not has_native_target(tmp_path)


def test_without_pythons_headers_nothing_is_built(tmp_path: Path):
    said = configure(tmp_path, "-DPython_INCLUDE_DIR=/no/such/directory")
    if "No working C++ compiler" in said:
        pytest.skip("this machine has no C++ compiler")
    assert "No headers of Python" in said
    assert not has_native_target(tmp_path)
