"""The 8-bit kernel against PyTorch in double precision, and what it promises about bits."""

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill import kernels

needs_native = pytest.mark.skipif(
    not kernels.instruction_sets(), reason="gristmill._native was not built (no C++ compiler)"
)


def problem(out: int, in_: int, rows: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (out, in_), dtype=torch.int8, generator=g)
    scale = torch.rand(out, 1, generator=g) * 0.01 + 1e-4
    return torch.randn(rows, in_, generator=g), weight, scale


def exact(x, weight, scale):
    return F.linear(x.double(), weight.double() * scale.double())


def bound(x, weight, scale):
    """Largest error that fp32 summation of these very terms can make: n · eps · Σ|w x| · scale."""
    terms = F.linear(x.double().abs(), weight.double().abs() * scale.double())
    return (weight.shape[1] + 2) * torch.finfo(torch.float32).eps * terms + 1e-30


@needs_native
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 70),
    in_=st.integers(1, 300),
    rows=st.integers(1, 9),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_every_instruction_set_equals_double_precision(isa, out, in_, rows, threads, seed):
    if isa not in kernels.instruction_sets():
        pytest.skip(f"this machine cannot run {isa}")
    x, weight, scale = problem(out, in_, rows, seed)
    y = kernels.int8_linear_native(x, weight, scale, isa=isa, threads=threads)
    assert ((y.double() - exact(x, weight, scale)).abs() <= bound(x, weight, scale)).all()


@given(out=st.integers(1, 40), in_=st.integers(1, 200), rows=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_dispatch_and_twin_equal_double_precision(out, in_, rows):
    x, weight, scale = problem(out, in_, rows)
    for function in (kernels.int8_linear, kernels.int8_linear_torch):
        y = function(x, weight, scale)
        assert y.shape == (rows, out) and y.dtype == torch.float32
        assert ((y.double() - exact(x, weight, scale)).abs() <= bound(x, weight, scale)).all()


@needs_native
def test_a_row_has_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads():
    x, weight, scale = problem(out=1003, in_=517, rows=13)
    alone = torch.cat(
        [kernels.int8_linear_native(row[None], weight, scale, threads=1) for row in x]
    )
    for rows in range(1, 14):
        for threads in (1, 2, 3, 8):
            y = kernels.int8_linear_native(x[:rows], weight, scale, threads=threads)
            assert torch.equal(y, alone[:rows])


@needs_native
def test_vector_instruction_sets_agree_in_every_bit():
    vector = [isa for isa in kernels.instruction_sets() if isa != "scalar"]
    if len(vector) < 2:
        pytest.skip("this machine has fewer than two vector instruction sets")
    x, weight, scale = problem(out=131, in_=777, rows=7)
    results = [kernels.int8_linear_native(x, weight, scale, isa=isa) for isa in vector]
    assert all(torch.equal(results[0], other) for other in results[1:])


@needs_native
def test_calls_from_many_threads_at_once_do_not_mix():
    problems = [problem(out=700 + i, in_=400, rows=1, seed=i) for i in range(6)]
    expected = [kernels.int8_linear_native(*p, threads=1) for p in problems]
    equal = [0] * 6  # a thread that dies leaves its own short

    def work(i: int) -> None:
        for _ in range(200):
            got = kernels.int8_linear_native(*problems[i], threads=2)
            equal[i] += torch.equal(got, expected[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [200] * 6


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_works_after_fork():
    """A child has none of its parent's worker threads; it must neither hang nor compute otherwise."""
    program = """
import os, signal, torch
from gristmill import kernels
g = torch.Generator().manual_seed(0)
w = torch.randint(-128, 128, (2000, 512), dtype=torch.int8, generator=g)
s, x = torch.rand(2000, 1, generator=g), torch.randn(1, 512, generator=g)
here = kernels.int8_linear_native(x, w, s, threads=4)
child = os.fork()
if child == 0:
    signal.alarm(240)
    there = kernels.int8_linear_native(x, w, s, threads=4)
    os._exit(0 if torch.equal(here, there) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()


@needs_native
def test_wrong_tensors_are_refused_and_read_nothing():
    x, weight, scale = problem(8, 16, 2)
    with pytest.raises(TypeError, match="int8"):
        kernels.int8_linear_native(x, weight.float(), scale)
    with pytest.raises(TypeError, match="float64"):
        kernels.int8_linear_native(x.double(), weight, scale)
    with pytest.raises(ValueError, match="does not go with"):
        kernels.int8_linear_native(x[:, :15], weight, scale)
    with pytest.raises(ValueError, match="does not go with"):
        kernels.int8_linear_native(x, weight, scale[:7])
    with pytest.raises(ValueError, match="instruction set"):
        kernels.int8_linear_native(x, weight, scale, isa="sse9")


@needs_native
def test_strided_and_empty_inputs():
    x, weight, scale = problem(24, 32, 6)
    wide = torch.zeros(6, 64)
    wide[:, ::2] = x
    assert torch.equal(
        kernels.int8_linear(wide[:, ::2], weight, scale), kernels.int8_linear(x, weight, scale)
    )
    assert torch.equal(
        kernels.int8_linear(x, weight.T.contiguous().T, scale),
        kernels.int8_linear(x, weight, scale),
    )
    assert kernels.int8_linear(x[:0], weight, scale).shape == (0, 24)
    assert kernels.int8_linear(x.view(2, 3, 32), weight, scale).shape == (2, 3, 24)


def test_other_types_and_gradients_go_through_the_twin():
    x, weight, scale = problem(24, 32, 2)
    half = kernels.int8_linear(x.bfloat16(), weight, scale)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact(x, weight, scale), rtol=0.05, atol=0.05)
    x.requires_grad_()
    kernels.int8_linear(x, weight, scale).sum().backward()
    torch.testing.assert_close(x.grad, (weight * scale).sum(0).expand(2, -1), rtol=1e-5, atol=1e-5)


def test_layer_takes_the_place_of_a_linear_layer_from_outside():
    network = torch.nn.ModuleDict(
        {"block": torch.nn.ModuleDict({"up": torch.nn.Linear(32, 24, bias=False)})}
    )
    x, weight, scale = problem(24, 32, 3)
    tensors = {"block.up.weight": weight, "block.up.weight_scale": scale}
    assert kernels.replace_int8(network, tensors) == ["block.up"]
    network.load_state_dict(tensors, strict=True)
    layer = network.get_submodule("block.up")
    assert isinstance(layer, kernels.Int8Linear) and list(network.parameters()) == []
    assert torch.equal(layer(x), kernels.int8_linear(x, weight, scale))
    network.to(torch.bfloat16)
    assert layer.weight.dtype == torch.int8 and torch.equal(layer.weight_scale, scale)
    assert set(network.state_dict()) == set(tensors)


def test_says_what_computes_and_why():
    kernel = kernels.describe()[0]
    if kernels.instruction_sets():
        assert (
            str(kernel)
            == f"int8_linear: native code ({kernels.instruction_sets()[-1]} instructions)"
        )
    program = (
        "import sys; sys.modules['gristmill._native'] = None\n"
        "import torch\nfrom gristmill import kernels\n"
        "print(kernels.describe()[0])\n"
        "w = torch.ones(4, 3, dtype=torch.int8)\n"
        "print(kernels.int8_linear(torch.ones(1, 3), w, torch.full((4, 1), 0.5)).tolist())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=300
    ).stdout.splitlines()
    assert said[0].startswith("int8_linear: PyTorch (") and "C++ compiler" in said[0]
    assert said[1] == "[[1.5, 1.5, 1.5, 1.5]]"
