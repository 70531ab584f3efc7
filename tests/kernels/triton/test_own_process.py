"""Triton decides when it is imported whether it interprets or compiles: these tests run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton is there for Linux alone")


@pytest.mark.parametrize(
    ("file", "interpret"),
    [("linear.py", "1"), ("attention.py", "1"), ("wiring.py", "1"), ("compiling.py", "0")],
)
def test_in_a_process_of_its_own(file: str, interpret: str, tmp_path: Path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header"]
    environment = {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [*command, str(HERE / "own_process" / file)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout


def test_kernels_import_without_triton():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\nfrom gristmill import kernels\n"
        "print(kernels.triton.takes(torch.ones(1)), len(kernels.describe()) >= 3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["False", "True"]


def test_importing_the_kernels_does_not_import_triton():
    program = (
        "import sys; import torch; before = set(sys.modules)\n"
        "from gristmill import kernels\n"
        "print('triton' in set(sys.modules) - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "False"


def test_without_a_gpu_the_benchmark_says_so_and_ends():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "there is nothing to measure here: no CUDA GPU\n"
