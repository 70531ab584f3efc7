"""GPTQ's and AWQ's files beside GPTQModel, which wrote or reads most of those that there are: bytes and logits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gristmill.formats import load_network, save_hf
from gristmill.formats.quantized.awq import AWQ
from gristmill.formats.quantized.gptq import GPTQ
from gristmill.kernels import Codes
from tests.families import saved
from tests.formats.rounded import exact, quantize, random_codes

# out, in, group
SHAPES = [(8, 32, 32), (48, 96, 32), (64, 128, 128), (16, 256, 64), (72, 160, 160)]
TOKENS = torch.randint(3, 320, (2, 40), generator=torch.Generator().manual_seed(2))
# name -> family, format, what `quantize` is told
MODELS = {
    "symmetric": ("llama, biases", "gptq", dict(group=32)),
    "asymmetric": ("llama, llama3 rope", "gptq", dict(group=32, symmetric=False)),
    "bytes": ("qwen2", "gptq", dict(bits=8)),
    "partial": ("llama, yarn", "gptq", dict(keep=("model.layers.1.self_attn.o_proj",))),
    "permuted": ("gpt_neox", "gptq", dict(group=32)),
    "transposed": ("gpt2", "gptq", dict(group=32)),
    "awq": ("llama, biases", "awq", dict(group=32, symmetric=False)),
    "awq, partial": ("qwen2", "awq", dict(symmetric=False, keep=("model.layers.0.mlp.up_proj",))),
}


def all_codes() -> dict[str, Codes]:
    found = {}
    for i, (out, width, group) in enumerate(SHAPES):
        for bits in (4, 8):
            # Zeros from 1: of version 1 files GPTQModel says itself that a zero of 0 spoils its neighbour.
            found[f"gptq.{bits}.{i}"] = random_codes(out, width, group, bits, False, 1, seed=i)
        found[f"awq.4.{i}"] = random_codes(out, width, group, 4, False, seed=i)
    for bits in (4, 8):
        found[f"gptq.{bits}.symmetric"] = random_codes(32, 64, 32, bits, True)
    plain = random_codes(48, 96, 32, 4, False, 1, seed=9)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3))
    found["gptq.4.ordered"] = Codes(plain.q, plain.scale, plain.zero, 4, 32, order)
    return found


def natural(codes: Codes) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes in the layer's own order of inputs, and the group of each input, by their definition."""
    width = codes.q.shape[1]
    q, group_of = torch.empty_like(codes.q), torch.empty(width, dtype=torch.int32)
    for place, column in enumerate(range(width) if codes.order is None else codes.order.tolist()):
        q[:, column], group_of[column] = codes.q[:, place], place // codes.group
    return q, group_of


@pytest.fixture(scope="module")
def peer(tmp_path_factory, tokenizer) -> Path:
    """Everything that GPTQModel is asked, in one process: its import takes most of the time."""
    place = (
        Path(sys.prefix) / "peers/gptqmodel"
    )  # apart from our own packages: the Makefile says why
    assert place.is_dir(), "GPTQModel is not installed: make .venv/.ready-to-test"
    root = tmp_path_factory.mktemp("gptqmodel")
    given = {}
    for name, codes in all_codes().items():
        q, group_of = natural(codes)
        parts = {"q": q, "scale": codes.scale, "zero": codes.zero, "group_of": group_of}
        given |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(given, root / "codes.safetensors")
    save_file({"tokens": TOKENS}, root / "tokens.safetensors")
    for name, (family, format, grid) in MODELS.items():
        directory = saved(family, tmp_path_factory.getbasetemp() / "families")[1]
        network = quantize(load_network(directory), **grid)
        save_hf(network.half(), root / name, tokenizer, quantization=format)
    command = [sys.executable, str(Path(__file__).with_name("gptqmodel_peer.py")), str(root)]
    command += [str(root / name) for name in MODELS]
    paths = [str(place), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return root


@pytest.mark.parametrize("name", list(all_codes()))
def test_bytes_in_both_directions(peer, name):
    kind, bits, _ = name.split(".")
    codes = all_codes()[name]
    packed = load_file(peer / "packed.safetensors")
    theirs = {key.rpartition(".")[2]: t for key, t in packed.items() if key.startswith(f"{name}.")}
    schemes = [
        (GPTQ(int(bits), codes.group, 2), "qzeros"),
        (GPTQ(int(bits), codes.group, 1), "qzeros_v1"),
    ]
    for scheme, zeros in schemes if kind == "gptq" else [(AWQ(codes.group), "qzeros")]:
        theirs["qzeros"] = theirs[zeros]
        ours = scheme.pack(codes)
        for part, tensor in ours.items():
            assert tensor.dtype == theirs[part].dtype and torch.equal(tensor, theirs[part]), part
        again = scheme.unpack({part: theirs[part] for part in ours})
        q, _ = natural(codes)
        assert torch.equal(natural(again)[0], q) and torch.equal(again.scale, codes.scale)
        assert torch.equal(again.zero, codes.zero)
        assert torch.equal(again.matrix(), codes.matrix())
        if kind == "gptq":  # they multiply in fp16, once
            assert torch.equal(again.matrix().half(), theirs["weight"])


@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_gptqmodel_reads_what_we_write(peer, name):
    expected = load_file(peer / name / "logits.safetensors")["logits"]
    found = exact(load_network(peer / name))(TOKENS)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert expected.std() > 0.1
