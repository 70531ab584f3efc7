"""Layers and the engine's runner where Triton kernels take their tensors, against themselves where none does."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gristmill.engine.ragged import Span, ragged
from gristmill.engine.torch_runner import TorchRunner
from gristmill.kernels import CODINGS, Codes, Int8Linear, QuantizedLinear, QuantizedStack, describe
from gristmill.kernels.coded import pack
from gristmill.model import ModelConfig, Transformer, initialize


def codes(out: int, width: int, group: int, order: torch.Tensor | None = None) -> Codes:
    g = torch.Generator().manual_seed(out)
    return Codes(
        torch.randint(0, 16, (out, width), dtype=torch.uint8, generator=g),
        torch.rand(out, width // group, generator=g).half() * 0.02,
        torch.randint(0, 16, (out, width // group), dtype=torch.uint8, generator=g),
        4,
        group,
        order,
    )


def test_layers_use_the_kernels(as_on_a_gpu: None):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    bias = torch.nn.Parameter(torch.randn(20), requires_grad=False)
    layer = QuantizedLinear.from_codes(codes(20, 64, 32, order), bias=bias)
    for rows in (1, 3):
        x = torch.randn(rows, 64)
        exact = x.double() @ layer.matrix(torch.float64).T + bias.double()
        assert torch.allclose(layer(x).double(), exact, atol=1e-5)  # x was not rounded
    eight = Int8Linear(64, 24)
    eight.weight = torch.randint(-128, 128, (24, 64), dtype=torch.int8)
    eight.weight_scale = torch.rand(24, 1)
    exact = x.double() @ (eight.weight * eight.weight_scale.double()).T
    assert torch.allclose(eight(x).double(), exact, rtol=1e-4, atol=1e-3)


def test_experts_are_parts_of_a_stack(as_on_a_gpu: None):
    stack = QuantizedStack.from_codes(codes(3 * 32, 64, 32), parts=3)
    x, whole = torch.randn(2, 64), stack.matrix(torch.float64)
    for part in range(3):
        exact = x.double() @ whole[part * 32 : part * 32 + 32].T
        assert torch.allclose(stack(x, part).double(), exact, atol=1e-5)


@pytest.mark.parametrize(
    ("capability", "said"),
    [
        ((9, 0), "Triton (Some GPU)"),
        ((7, 5), "PyTorch (the GPU is older than compute capability 8.0"),
    ],
)
def test_a_gpus_kernels_are_described(monkeypatch: pytest.MonkeyPatch, capability, said):
    assert not any("on the GPU" in str(kernel) for kernel in describe())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    lines = [str(kernel) for kernel in describe() if "on the GPU" in kernel.name]
    assert len(lines) == 3 and all(f"on the GPU: {said}" in line for line in lines)


def test_gradients_still_flow(as_on_a_gpu: None):
    layer = QuantizedLinear.from_codes(codes(20, 64, 32))
    x = torch.randn(2, 64, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.matrix(torch.float32).sum(0).expand(2, -1), atol=1e-5)


@pytest.mark.parametrize("coding", CODINGS)
def test_matrices_are_unpacked_where_they_lie(coding: str):
    """Tensors of another device meet none on the CPU."""
    kind = CODINGS[coding]
    group = kind.record or 64
    fields = {"q": torch.zeros(16, 512, dtype=torch.uint8)}
    for name in kind.header:
        dtype = torch.int8 if name == "zero" else torch.float16
        fields[name] = torch.zeros(16, 512 // group, dtype=dtype)
    for name in kind.block:
        fields[name] = torch.zeros(16, 2, 8, kind.per_block, dtype=torch.uint8)
    size = pack(kind, fields, group).shape[1]
    with FakeTensorMode():
        packed = torch.empty(2, size, dtype=torch.uint8, device="meta")
        layer = QuantizedLinear(coding, packed, 30, 512, group)
        assert layer.matrix(torch.bfloat16).device.type == "meta"


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("kept", ["float32", "float16"])
def test_runner_attends_as_without_the_kernel(monkeypatch: pytest.MonkeyPatch, family, kept):
    """Prompts of several tokens, single tokens, and both in one step."""
    more = dict(sliding_window=20, attention_softcap=3.0) if family == "gemma2" else {}
    config = ModelConfig(
        family=family,
        vocab_size=50,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=48,
        max_seq_len=512,
        **more,
    )
    network = initialize(Transformer(config), seed=1)
    g = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 50, (n,), generator=g).tolist() for n in (70, 33))
    tables = [5, 0, 3, 7, 1], [2, 6, 4]
    steps = [
        [Span(first, 0, tables[0], 70, 1)],
        [Span([7], 70, tables[0], 71, 1), Span(second, 0, tables[1], 33, 2)],
        [Span([9], 71, tables[0], 72, 1), Span([3], 33, tables[1], 34, 1)],
    ]
    found = []
    for takes in (False, True):
        monkeypatch.setattr("gristmill.kernels.triton.takes", lambda x, takes=takes: takes)
        runner = TorchRunner(network, 8, 16, kept)
        assert runner._cache._paged is takes
        found.append([runner.hidden(ragged(spans, 16)) for spans in steps])
    for plain, paged in zip(*found, strict=True):
        assert torch.allclose(plain, paged, atol=2e-5)
