"""Products with coded and 8-bit weights by Triton's interpreter, against the twin and double precision."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.kernels import CODINGS, Codes, QuantizedLinear, int8_linear_torch
from gristmill.kernels.triton.int8 import int8_linear_triton
from gristmill.kernels.triton.linear import coded_linear_triton
from gristmill.kernels.triton.shares import shares_of

HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0]}
HALVES |= {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The interpreter cuts bits off where a GPU rounds, so a result may be a whole unit in the last place away.
UNIT = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def random_blocks(type: str, out: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Any bytes but for scales, the last block's of which are zero; and what ggml reads in them."""
    draw = np.random.default_rng(out * width)
    size, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[type]]
    raw = draw.integers(0, 256, (out, width // size, nbytes), dtype=np.uint8)
    for at in HALVES[type]:
        scales = (draw.standard_normal((out, width // size)) * 0.01).astype(np.float16)
        scales[:, -1] = 0
        raw[..., at : at + 2] = scales.view(np.uint8).reshape(*scales.shape, 2)
    raw = raw.reshape(out, -1)
    weight = quants.dequantize(raw, GGMLQuantizationType[type])
    return torch.from_numpy(raw), torch.from_numpy(weight)


def random_codes(out: int, width: int, bits: int, group: int, dtype: torch.dtype, seed: int):
    g = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 2**bits, (out, width), dtype=torch.uint8, generator=g)
    scale = (torch.rand(out, width // group, generator=g) * 0.02 + 1e-3).to(dtype)
    zero = torch.randint(0, 2**bits, scale.shape, dtype=torch.uint8, generator=g)
    return Codes(q, scale, zero, bits, group)


def by_kernel(layer: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    wide, kind = layer.scale_dtype != torch.float16, CODINGS[layer.coding]
    return coded_linear_triton(x, kind, layer.packed, layer.out_features, layer.group, wide)


def bound(x: torch.Tensor, exact: torch.Tensor, terms: torch.Tensor, width: int) -> torch.Tensor:
    """What rounding the result and adding in fp32 may cost."""
    return UNIT[x.dtype] * exact.abs() + 2.0**-24 * (width + 4) * terms + 1e-30


def check(layer: QuantizedLinear, weight: torch.Tensor, x: torch.Tensor, terms: torch.Tensor):
    """weight fp64 [out, in]; terms [out, in]: the largest numbers that go into each product."""
    y = by_kernel(layer, x)
    assert y.shape == (*x.shape[:-1], layer.out_features) and y.dtype == x.dtype
    exact = F.linear(x.double(), weight)
    allowed = bound(x, exact, F.linear(x.double().abs(), terms), layer.in_features)
    assert ((y.double() - exact).abs() <= allowed).all()
    twin = F.linear(x.float(), layer.matrix(torch.float32)).to(x.dtype)
    assert ((y.double() - twin.double()).abs() <= 2 * allowed).all()


@pytest.mark.parametrize("type", HALVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_of_gguf(type: str, dtype: torch.dtype):
    blocks, weight = random_blocks(type, 37, 512)
    layer = QuantizedLinear.from_blocks(type, blocks)
    # A minimum and the code's part of a weight may cancel: their sizes count, not the difference.
    codes_part = weight.double().abs() + weight.double().abs().amax(1, keepdim=True) * 2
    for rows in (1, 17):
        x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(rows)).to(dtype)
        check(layer, weight.double(), x, codes_part)


@settings(max_examples=12, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    out=st.integers(1, 70),
    group=st.sampled_from([32, 64, 96, 128]),
    groups=st.integers(1, 9),
    rows=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    scales=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_codes_of_any_shape(bits, out, group, groups, rows, dtype, scales, seed):
    codes = random_codes(out, group * groups, bits, group, scales, seed)
    x = torch.randn(rows, group * groups, generator=torch.Generator().manual_seed(seed)).to(dtype)
    weight = codes.matrix(torch.float64)
    check(QuantizedLinear.from_codes(codes), weight, x, weight.abs())


@pytest.mark.parametrize("width", [1, 31, 50, 100])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 5])
def test_whole_rows_of_any_width(width: int, bits: int, rows: int):
    codes = random_codes(19, width, bits, width, torch.float16, width)
    x = torch.randn(rows, width, dtype=torch.float32)
    weight = codes.matrix(torch.float64)
    check(QuantizedLinear.from_codes(codes), weight, x, weight.abs())


@pytest.mark.parametrize("rows", [1, 3])
def test_shares_of_the_inputs_are_added(rows: int):
    codes = random_codes(24, 4096, 4, 128, torch.float16, 0)
    assert shares_of(rows, 24, 128, 8) == (8, 16)
    x = torch.randn(rows, 4096, generator=torch.Generator().manual_seed(rows))
    layer, weight = QuantizedLinear.from_codes(codes), codes.matrix(torch.float64)
    check(layer, weight, x, weight.abs())
    assert torch.equal(by_kernel(layer, x), by_kernel(layer, x))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 200),
    out=st.integers(1, 200_000),
    blocks=st.integers(1, 2000),
    whole=st.sampled_from([1, 2, 4, 8]),
)
def test_every_input_is_in_one_share(rows: int, out: int, blocks: int, whole: int):
    shares, share = shares_of(rows, out, blocks, whole)
    assert share % whole == 0 and (shares - 1) * share < blocks <= shares * share
    if rows <= 64:
        assert (shares, share) == shares_of(1, out, blocks, whole)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("bits", [4, 8])
def test_extremes_and_zeros(rows: int, bits: int):
    """Largest codes under the smallest zero and the other way round, and groups that are all zero."""
    top = 2**bits - 1
    for code, zero in ((top, 0), (0, top), (7, 7)):
        q = torch.full((16, 256), code, dtype=torch.uint8)
        zeros = torch.full((16, 2), zero, dtype=torch.uint8)
        codes = Codes(q, torch.full((16, 2), 60000.0).half(), zeros, bits, 128)
        layer = QuantizedLinear.from_codes(codes)
        for dtype in DTYPES:
            x = torch.ones(rows, 256, dtype=dtype) / 65536
            y = by_kernel(layer, x)
            expected = torch.full_like(y, 256 / 65536 * (code - zero) * float(codes.scale[0, 0]))
            assert torch.allclose(y.float(), expected.float(), rtol=2 * UNIT[dtype], atol=0)


@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("type", ["Q8_0", "Q4_K", "int4"])
def test_what_is_not_finite_spoils_its_row_and_no_other(rows: int, bad: float, type: str):
    if type == "int4":
        layer = QuantizedLinear.from_codes(random_codes(16, 512, 4, 64, torch.float16, 5))
    else:
        blocks, _ = random_blocks(type, 16, 512)
        layer = QuantizedLinear.from_blocks(type, blocks)
    x = torch.randn(rows, 512)
    x[rows // 2, 40] = bad
    y = by_kernel(layer, x)
    if math.isnan(bad):
        assert y[rows // 2].isnan().all()
    else:
        assert not y[rows // 2].isfinite().any() or bool(
            (layer.matrix(torch.float32)[:, 40] == 0).any()
        )
    others = torch.arange(rows) != rows // 2
    assert y[others].isfinite().all()


def test_a_row_depends_on_itself_alone():
    layer = QuantizedLinear.from_codes(random_codes(40, 512, 4, 128, torch.float16, 9))
    x = torch.randn(29, 512, generator=torch.Generator().manual_seed(1)).half()
    together = by_kernel(layer, x)
    assert torch.equal(by_kernel(layer, x[5:22]), together[5:22])


def test_no_rows_and_rows_in_several_dimensions():
    layer = QuantizedLinear.from_codes(random_codes(10, 64, 4, 32, torch.float16, 2))
    assert by_kernel(layer, torch.ones(0, 64)).shape == (0, 10)
    x = torch.randn(2, 3, 64)
    assert torch.equal(by_kernel(layer, x).flatten(0, 1), by_kernel(layer, x.flatten(0, 1)))


@settings(max_examples=12, deadline=None)
@given(
    out=st.integers(1, 70),
    width=st.integers(1, 400),
    rows=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_8_bit_rows_of_any_shape(out, width, rows, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (out, width), dtype=torch.int8, generator=g)
    scale = torch.rand(out, 1, generator=g) * 0.01
    scale[0] = 0
    x = torch.randn(rows, width, generator=g).to(dtype)
    y = int8_linear_triton(x, weight, scale)
    exact = F.linear(x.double(), weight.double() * scale.double())
    terms = F.linear(x.double().abs(), (weight.double() * scale.double()).abs())
    allowed = bound(x, exact, terms, width)
    assert y.dtype == dtype and ((y.double() - exact).abs() <= allowed).all()
    twin = int8_linear_torch(x.float(), weight, scale)
    assert ((y.double() - twin.double()).abs() <= 2 * allowed).all()


def test_8_bit_rows_spread_what_is_not_a_number():
    weight = torch.randint(-128, 128, (8, 70), dtype=torch.int8)
    x = torch.randn(4, 70)
    x[2, 69] = math.nan
    y = int8_linear_triton(x, weight, torch.ones(8, 1))
    assert y[2].isnan().all() and y[[0, 1, 3]].isfinite().all()
