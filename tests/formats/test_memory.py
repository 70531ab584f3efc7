"""Memory that loading takes: the finished weights and hardly more, whatever dtype they become. Linux only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gristmill.formats import Model
from gristmill.model import ModelConfig, Transformer, initialize

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="memory is not measured: there is no /proc"
)

LOAD = """
import json, sys
import torch
from gristmill.formats import Model

def kilobytes(field):
    return int(open("/proc/self/status").read().split(field + ":")[1].split()[0])

torch.zeros(4).bfloat16().float().aminmax()  # what torch sets up at first use
before = kilobytes("VmRSS")
model = Model.load(sys.argv[1], dtype=sys.argv[2])
tensors = [*model.network.parameters(), *model.network.buffers()]
held = sum(t.numel() * t.element_size() for t in tensors)
print(json.dumps({"peak": 1024 * (kilobytes("VmHWM") - before), "held": held}))
"""


@pytest.fixture(scope="module")
def large(tokenizer, tmp_path_factory) -> Path:
    """160M parameters as bfloat16 (320 MB), as a directory and as GGUF files."""
    config = ModelConfig(
        vocab_size=8_000,
        hidden_size=1024,
        num_layers=12,
        num_heads=16,
        num_kv_heads=4,
        head_dim=64,
        intermediate_size=3072,
        max_seq_len=512,
        tie_embeddings=False,
    )
    path = tmp_path_factory.mktemp("large")
    model = Model(initialize(Transformer(config), 0).to(torch.bfloat16), tokenizer)
    model.save(path / "hf")
    model.save(path / "bf16.gguf", format="gguf")
    model.save(path / "q8.gguf", format="gguf", quant="Q8_0")
    return path


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["hf", "bf16.gguf", "q8.gguf"])
def test_peak_is_the_weights(large, name, dtype):
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(large / name), dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout)
    assert found["held"] > 150_000_000
    assert found["peak"] <= 1.15 * found["held"], found
