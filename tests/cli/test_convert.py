"""convert and inspect from the command line, on the story model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path("../shared/data/models").resolve()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("convert")
    for name in ("stories260K.bin", "tok512.bin"):
        shutil.copy(MODELS / name, path)
    return path


def gristmill(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gristmill.cli.main", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)


def test_there_and_back(place):
    done = gristmill(place, "convert", "stories260K.bin", "stories")
    assert done.returncode == 0, done.stderr
    assert "stories: a Hugging Face directory, F32" in done.stdout
    assert "same likeliest token 100.0%" in done.stdout
    done = gristmill(place, "convert", "stories", "stories.gguf", "--type", "q8_0", "--json")
    shown = json.loads(done.stdout)
    assert shown["kind"] == "Q8_0" and 0 < shown["parity"]["kl"] < shown["bound"]
    done = gristmill(place, "convert", "stories.gguf", "again", "--dtype", "bfloat16")
    assert done.returncode == 0 and "again: a Hugging Face directory, BF16" in done.stdout
    told = gristmill(place, "generate", "again", "Once upon a time", "--temperature", "0")
    assert "there was a little girl named Lily" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stories260K.bin", "x.gguf", "--type", "Q9"], "'Q9' is not a type of GGUF file"),
        (["stories260K.bin", "x", "--type", "Q8_0"], "name the target something.gguf"),
        (["stories260K.bin", "tok512.bin"], "tok512.bin is there already"),
        (["nowhere", "x"], "there is no model at nowhere"),
        (["tok512.bin", "x"], "tok512.bin is not a llama2.c checkpoint"),
        (["stories260K.bin", "x", "--dtype", "float61"], "'float61' is not one of"),
    ],
)
def test_wrong_requests(place, arguments, says):
    before = sorted(path.name for path in place.iterdir())
    done = gristmill(place, "convert", *arguments)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in place.iterdir()) == before


def test_inspect_tells_what_a_file_holds(place):
    shown = gristmill(place, "inspect", "stories260K.bin")
    assert shown.returncode == 0
    for text in ("stories260K.bin: llama2.c, llama", "260,032", "47 × float32", "512 × 64"):
        assert text in shown.stdout, text
    gristmill(place, "convert", "stories260K.bin", "f16.gguf", "--type", "F16")
    shown = gristmill(place, "inspect", "f16.gguf")
    for text in ("GGUF", "llama.rope.freq_base", "token_embd.weight", "and 35 more"):
        assert text in shown.stdout, text
    listed = json.loads(gristmill(place, "inspect", "f16.gguf", "--json").stdout)
    assert listed["metadata"]["general.file_type"] == 1 and len(listed["tensors"]) == 47
    assert {tensor["type"] for tensor in listed["tensors"]} == {"F16", "F32"}
    read = gristmill(place, "inspect", "f16.gguf", "Once upon", "--top", "1", "--json")
    assert json.loads(read.stdout)["next"][0]["token"] == " a"
    (place / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    broken = gristmill(place, "inspect", "broken.gguf")
    assert broken.returncode == 2 and "GGUF version 0" in broken.stderr
