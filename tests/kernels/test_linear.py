"""The linear kernel and its functions against double precision, and what it promises about bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill import kernels

pytestmark = pytest.mark.skipif(
    not kernels.instruction_sets(), reason="gristmill._native was not built (no C++ compiler)"
)
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
ISAS = ["scalar", "avx2", "avx512"]
EPS = torch.finfo(torch.float32).eps


def needs(isa: str) -> None:
    if isa not in kernels.instruction_sets():
        pytest.skip(f"this machine cannot run {isa}")


def problem(out: int, in_: int, rows: int, dtype: torch.dtype, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, in_, generator=g)
    if dtype == torch.int8:
        weight = torch.randint(-128, 128, (out, in_), dtype=dtype, generator=g)
        return x, weight, torch.rand(out, 1, generator=g) * 0.01 + 1e-4
    return x, torch.randn(out, in_, generator=g).to(dtype), None


def exact(x, weight, scale):
    y = x.double() @ weight.double().T
    return y if scale is None else y * scale.double().view(-1)


def bound(x, weight, scale):
    """Largest error that fp32 summation of these very terms can make: n · eps · Σ|w x|."""
    return (weight.shape[1] + 2) * EPS * exact(x.abs(), weight.double().abs(), scale) + 1e-30


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=80, deadline=None)
@given(
    out=st.integers(1, 70),
    in_=st.integers(1, 300),
    rows=st.integers(1, 40),
    threads=st.integers(1, 4),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 2**31),
)
def test_equals_double_precision(isa, out, in_, rows, threads, dtype, seed):
    needs(isa)
    x, weight, scale = problem(out, in_, rows, dtype, seed)
    y = kernels.linear_native(x, weight, scale, isa, threads)
    assert ((y.double() - exact(x, weight, scale)).abs() <= bound(x, weight, scale)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_has_the_same_bits_among_any_others_and_on_any_number_of_threads(isa, dtype):
    needs(isa)
    for out, in_ in ((203, 517), (64, 768), (5, 16)):
        x, weight, scale = problem(out, in_, 70, dtype)
        alone = torch.cat([kernels.linear_native(row[None], weight, scale, isa, 1) for row in x])
        for rows in range(1, 71):
            y = kernels.linear_native(x[:rows], weight, scale, isa, 1 + rows % 4)
            assert torch.equal(y, alone[:rows])
        assert torch.equal(kernels.linear_native(x[13:60], weight, scale, isa, 2), alone[13:60])


@pytest.mark.parametrize("dtype", TYPES)
def test_vector_instruction_sets_agree_in_every_bit(dtype):
    needs("avx512")
    x, weight, scale = problem(131, 777, 20, dtype)
    results = [kernels.linear_native(x, weight, scale, isa) for isa in ("avx2", "avx512")]
    assert torch.equal(*results)


@pytest.mark.parametrize("isa", ISAS)
def test_every_16_bit_number_is_read_right(isa):
    """A one-hot x picks each weight: subnormal and infinite ones, too."""
    needs(isa)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        weight = every.view(dtype)[:, None].contiguous()
        got = kernels.linear_native(torch.ones(1, 1), weight, isa=isa)[0]
        torch.testing.assert_close(got, weight.float()[:, 0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function, units", [("exp", 2), ("tanh", 2), ("erf", 2)])
def test_functions(isa, function, units):
    """Relative error in units of eps, over the whole range and densely around 0."""
    needs(isa)
    x = torch.cat([torch.linspace(-87.3, 88, 400_001), torch.linspace(-2, 2, 400_001)])
    x = torch.cat([x, torch.logspace(-30, 0, 10_001), -torch.logspace(-30, 0, 10_001)])
    expected = getattr(torch, function)(x.double())
    got = kernels.map_native(function, x, isa).double()
    assert ((got - expected).abs() <= units * EPS * expected.abs() + 2e-38).all()
    # A tail has the bits that the middle of a row has.
    assert torch.equal(kernels.map_native(function, x[5:12], isa).double(), got[5:12])


def test_functions_at_the_ends():
    inf = float("inf")
    assert kernels.map_native("exp", torch.tensor([-inf, -1000.0, 0.0])).tolist() == [0.0, 0.0, 1.0]
    for function in ("tanh", "erf"):
        assert kernels.map_native(function, torch.tensor([-inf, 0.0, inf])).tolist() == [-1, 0, 1]
    for function in ("exp", "tanh", "erf"):
        assert kernels.map_native(function, torch.tensor([float("nan")])).isnan().all()


def test_wrong_tensors_are_refused_and_read_nothing():
    x, weight, scale = problem(8, 16, 2, torch.int8)
    with pytest.raises(TypeError, match="scales"):
        kernels.linear_native(x, weight)
    with pytest.raises(TypeError, match="float64"):
        kernels.linear_native(x.double(), weight, scale)
    with pytest.raises(ValueError, match="does not go with"):
        kernels.linear_native(x[:, :15], weight, scale)
    with pytest.raises(ValueError, match="dense"):
        kernels.array(weight.T)
    with pytest.raises(ValueError, match="instruction set"):
        kernels.linear_native(x, weight, scale, isa="sse9")
