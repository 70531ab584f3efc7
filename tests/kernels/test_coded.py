"""Coded matrices against ggml's own reading of the same bytes, in float64, on every instruction set."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType, quants

from gristmill.errors import RequestError
from gristmill.kernels import Codes, QuantizedEmbedding, QuantizedLinear, instruction_sets
from gristmill.kernels.coded import (
    CODINGS,
    coded_linear_native,
    fields_of,
    pack,
    pack_blocks,
    round_blocks,
    unpack,
)

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
needs_native = pytest.mark.skipif(
    not instruction_sets(), reason="gristmill._native was not built (no C++ compiler)"
)
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0]}
HALVES |= {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def seen(x: torch.Tensor, rounded: bool) -> torch.Tensor:
    return round_blocks(x) if rounded else x


def random_blocks(type: str, out: int, width: int, seed: int = 0) -> torch.Tensor:
    """Any bytes, but scales that are ordinary numbers (a zero one among them)."""
    draw = np.random.default_rng(seed)
    size, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[type]]
    raw = draw.integers(0, 256, (out, width // size, nbytes), dtype=np.uint8)
    for at in HALVES[type]:
        scales = (draw.standard_normal((out, width // size)) * 0.01).astype(np.float16)
        scales[-1] = 0
        raw[..., at : at + 2] = scales.view(np.uint8).reshape(*scales.shape, 2)
    return torch.from_numpy(raw.reshape(out, -1))


def read_by_ggml(type: str, blocks: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(quants.dequantize(blocks.numpy(), GGMLQuantizationType[type]))


def random_codes(
    out: int, width: int, bits: int, group: int, dtype: torch.dtype = torch.float16
) -> Codes:
    generator = torch.Generator().manual_seed(out + width)
    high = 2**bits
    return Codes(
        torch.randint(0, high, (out, width), dtype=torch.uint8, generator=generator),
        (torch.rand(out, width // group, generator=generator) * 0.02 + 1e-3).to(dtype),
        torch.randint(0, high, (out, width // group), dtype=torch.uint8, generator=generator),
        bits,
        group,
    )


@pytest.mark.parametrize("type", TYPES)
def test_weights_are_those_that_ggml_reads(type: str):
    blocks = random_blocks(type, 37, 512)
    expected = read_by_ggml(type, blocks)
    assert torch.equal(QuantizedLinear.from_blocks(type, blocks).matrix(torch.float32), expected)
    rows = torch.tensor([[0, 36], [15, 16]])
    table = QuantizedEmbedding.from_blocks(type, blocks)
    assert torch.equal(table(rows), expected[rows])


@needs_native
@pytest.mark.parametrize("type", TYPES)
def test_native_code_packs_as_pytorch_does(type: str):
    blocks, kind = random_blocks(type, 37, 512), CODINGS[type]
    by_torch = pack(kind, fields_of(type, blocks), kind.record)
    assert torch.equal(pack_blocks(type, blocks), by_torch)
    again = unpack(kind, by_torch, 512, kind.record, torch.float16)
    for name, field in fields_of(type, blocks).items():
        assert torch.equal(again[name][:37].view(torch.uint8), field.view(torch.uint8)), name


@needs_native
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("rounded", [True, False])
def test_products_on_every_instruction_set(type: str, rounded: bool):
    blocks = random_blocks(type, 37, 768)
    expected, layer = read_by_ggml(type, blocks).double(), QuantizedLinear.from_blocks(type, blocks)
    for rows in (1, 2, 3, 4, 5, 7, 9, 13, 40):
        x = torch.randn(rows, 768, generator=torch.Generator().manual_seed(rows))
        exact = seen(x, rounded).double() @ expected.T
        found = {
            isa: coded_linear_native(x, layer.native(), 37, rounded, isa, threads=2)
            for isa in instruction_sets()
        }
        for isa, y in found.items():
            assert (y - exact).abs().max() <= 1e-6 * exact.abs().max(), (isa, rows)
        if "avx512" in found:
            assert torch.equal(found["avx2"], found["avx512"])


@pytest.mark.parametrize(
    ("bits", "out", "width", "group", "dtype"),
    [
        (4, 48, 256, 128, torch.float16),
        (4, 33, 96, 32, torch.float32),
        (4, 5, 320, 64, torch.bfloat16),
        (4, 17, 50, 50, torch.float16),
        (8, 16, 256, 128, torch.float16),
        (8, 31, 100, 100, torch.float32),
    ],
)
def test_codes_come_back_and_multiply(
    bits: int, out: int, width: int, group: int, dtype: torch.dtype
):
    codes = random_codes(out, width, bits, group, dtype)
    layer = QuantizedLinear.from_codes(codes)
    again = layer.codes()
    assert torch.equal(again.q, codes.q) and torch.equal(again.zero, codes.zero)
    assert torch.equal(again.scale, codes.scale) and again.scale.dtype == dtype
    exact_weight = codes.matrix(torch.float64)
    assert torch.allclose(layer.matrix(torch.float32).double(), exact_weight, rtol=1e-6)
    x = torch.randn(6, width, generator=torch.Generator().manual_seed(0))
    for rounded in (True, False):
        exact = seen(x, rounded).double() @ exact_weight.T
        for isa in instruction_sets():
            y = coded_linear_native(x, layer.native(), out, rounded, isa)
            assert (y - exact).abs().max() <= 2e-6 * exact.abs().max(), (isa, rounded)


def test_inputs_are_taken_in_the_order_of_the_codes():
    codes = random_codes(16, 64, 4, 32)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    ordered = Codes(codes.q, codes.scale, codes.zero, 4, 32, order)
    layer = QuantizedLinear.from_codes(ordered)
    layer.rounded = False
    x = torch.randn(3, 64)
    expected = x[:, order].double() @ codes.matrix(torch.float64).T
    assert torch.allclose(layer(x).double(), expected, atol=1e-5)
    assert torch.allclose(x.double() @ layer.matrix(torch.float64).T, expected, atol=1e-6)


@needs_native
@pytest.mark.parametrize("rounded", [True, False])
def test_a_row_depends_on_itself_alone(rounded: bool):
    layer = QuantizedLinear.from_blocks("Q4_K", random_blocks("Q4_K", 40, 512))
    x = torch.randn(29, 512, generator=torch.Generator().manual_seed(1))
    together = coded_linear_native(x, layer.native(), 40, rounded, threads=2)
    for i in (0, 7, 28):
        alone = coded_linear_native(x[i : i + 1], layer.native(), 40, rounded, threads=1)
        assert torch.equal(alone[0], together[i])


def test_rounding_by_its_definition():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5] + [0.0] * 27 + [0.0] * 32 + [1e-42] * 32])
    found = round_blocks(x)
    assert found[0, :5].tolist() == [127.0, 0.0, 2.0, 2.0, 0.0]  # half to even
    assert not found[0, 32:64].any()
    # The kernel rounds alike: with one weight of 1 a row, it shows what it saw.
    codes = torch.full((96, 96), 8, dtype=torch.uint8)
    codes.fill_diagonal_(9)
    ones = Codes(
        codes, torch.ones(96, 3, dtype=torch.float16), torch.full((96, 3), 8).byte(), 4, 32
    )
    layer = QuantizedLinear.from_codes(ones)
    for isa in instruction_sets():
        shown = coded_linear_native(x, layer.native(), 96, True, isa)
        assert torch.equal(shown, found), isa


@needs_native
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rounded", [True, False])
def test_what_is_not_finite_spoils_its_row_and_no_other(bad: float, rounded: bool):
    layer = QuantizedLinear.from_blocks("Q8_0", random_blocks("Q8_0", 16, 64))
    x = torch.randn(3, 64)
    clean = layer(x)
    x[1, 40] = bad
    for isa in instruction_sets():
        y = coded_linear_native(x, layer.native(), 16, rounded, isa)
        assert (
            not y[1, :15].isfinite().any()
        )  # the last row's scales are 0, and 0 * inf is NaN or 0
        assert y[0].isfinite().all() and y[2].isfinite().all()
    assert clean.isfinite().all()


@needs_native
def test_extremes_of_the_codes():
    """Sums of the largest products: 16 bits must not overflow on the way."""
    for type in TYPES:
        blocks = torch.full_like(random_blocks(type, 16, 256), 255)
        for at in HALVES[type]:
            size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[type]][1]
            blocks.view(16, -1, size)[..., at : at + 2] = torch.tensor([0, 60], dtype=torch.uint8)
        layer, weight = QuantizedLinear.from_blocks(type, blocks), read_by_ggml(type, blocks)
        for x in (torch.ones(2, 256), -torch.ones(2, 256)):
            exact = x.double() @ weight.double().T
            for isa in instruction_sets():
                y = coded_linear_native(x, layer.native(), 16, True, isa)
                assert torch.allclose(y.double(), exact, rtol=1e-6), (type, isa)
    lowest = torch.full(
        (16, 34 * 2), 0x80, dtype=torch.uint8
    )  # codes of -128, which other writers may use
    lowest.view(16, 2, 34)[..., :2] = torch.tensor([0, 60], dtype=torch.uint8)
    layer = QuantizedLinear.from_blocks("Q8_0", lowest)
    for isa in instruction_sets():
        y = coded_linear_native(torch.ones(1, 64), layer.native(), 16, True, isa)
        assert torch.allclose(y, torch.full((1, 16), -128.0 * 64)), isa


def test_without_the_extension_the_same_numbers_come(monkeypatch: pytest.MonkeyPatch):
    layers = [QuantizedLinear.from_blocks(type, random_blocks(type, 24, 256)) for type in TYPES]
    layers.append(QuantizedLinear.from_codes(random_codes(24, 96, 4, 32)))
    for layer in layers:
        x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(2))
        by_kernel = layer(x)
        with monkeypatch.context() as without:
            without.setattr("gristmill.kernels.quantized.extension", None)
            by_torch = layer(x)
        assert torch.allclose(by_kernel, by_torch, atol=1e-5 * float(by_torch.abs().max()))
        assert not torch.equal(by_torch, F.linear(x, layer.matrix(torch.float32)))  # x was rounded


def test_gradients_flow_to_the_input():
    layer = QuantizedLinear.from_codes(random_codes(8, 64, 4, 32))
    x = torch.randn(2, 64, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.matrix(torch.float32).sum(0).expand(2, -1), atol=1e-5)


def test_groups_without_a_kernel_are_refused():
    with pytest.raises(RequestError, match="groups of 48 inputs"):
        QuantizedLinear.from_codes(random_codes(8, 96, 4, 48))
    with pytest.raises(RequestError, match="3 bits"):
        QuantizedLinear.from_codes(random_codes(8, 96, 3, 32))
