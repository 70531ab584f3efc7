"""FP8 products: rounding against torch's own conversion, sums against double precision, both ways alike."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.kernels import Fp8Linear, fp8_linear, fp8_linear_scaled, fp8_linear_torch, fp8_rows

LARGEST = torch.finfo(torch.float8_e4m3fn).max


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    width=st.integers(1, 200),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    seed=st.integers(0, 2**31),
)
def test_rows_are_rounded_by_half_a_step(rows, width, size, seed):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * size
    codes, scale = fp8_rows(x)
    assert codes.dtype == torch.float8_e4m3fn and scale.shape == (rows, 1)
    most = x.abs().amax(1)
    assert torch.equal(codes.float().abs().amax(1), torch.full((rows,), LARGEST))
    assert torch.allclose(scale[:, 0] * LARGEST, most)
    # Three bits after the leading one: half a step is 2^-4 of it; below 2^-6 steps are 2^-9.
    wrong = (codes.double() * scale.double() - x.double()).abs()
    assert (wrong <= x.double().abs() * 2**-4 + scale.double() * 2**-10 * 1.001).all()


def test_rows_of_zeros_and_rows_that_are_not_finite():
    x = torch.zeros(4, 32)
    x[1, 3], x[2, 5], x[3, 7] = math.nan, math.inf, 2.0
    layer = Fp8Linear(torch.randn(16, 32))
    y = layer(x)
    assert torch.equal(y[0], torch.zeros(16)) and y[3].isfinite().all()
    assert y[1].isnan().all() and y[2].isnan().all()
    assert torch.equal(Fp8Linear(torch.zeros(16, 32))(x[3:]), torch.zeros(1, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_against_double_precision(dtype):
    x, weight = torch.randn(2, 5, 48).to(dtype), torch.randn(33, 48)
    bias = torch.nn.Parameter(torch.randn(33))
    layer = Fp8Linear(weight, bias)
    codes, scale = fp8_rows(x)
    exact = F.linear(codes.double() * scale.double(), layer.matrix(torch.float64))
    y = fp8_linear_torch(x, layer.weight, layer.weight_scale)
    assert y.dtype == dtype
    rounding = torch.finfo(dtype).eps * exact.abs() + 1e-5
    assert ((y.double() - exact).abs() <= rounding).all()
    assert torch.equal(fp8_linear(x, layer.weight, layer.weight_scale), y)
    assert torch.equal(layer(x), y + bias.to(dtype))
    near = F.linear(x.double(), weight.double())
    assert (y.double() - near).norm() / near.norm() < 0.05


def test_torchs_own_product_is_the_same():
    """`torch._scaled_mm` takes rows' scales on CPUs too."""
    x, layer = torch.randn(2, 3, 64).bfloat16(), Fp8Linear(torch.randn(48, 64))
    y = fp8_linear_scaled(x, layer.weight, layer.weight_scale)
    twin = fp8_linear_torch(x.float(), layer.weight, layer.weight_scale)
    assert y.shape == (2, 3, 48) and y.dtype == torch.bfloat16
    assert ((y.float() - twin).abs() <= 2**-8 * twin.abs() + 1e-4).all()
