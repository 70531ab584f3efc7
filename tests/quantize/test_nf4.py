"""NF4 against bitsandbytes: the same bytes, and the same weights back."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bitsandbytes

from gristmill.errors import WorkError
from gristmill.quantize.nf4 import BLOCK, NF4_TABLE, Scales8, dynamic_table, quantize_nf4


@pytest.fixture(autouse=True)
def eager():
    """bitsandbytes compiles what it runs, for seconds."""
    with torch.compiler.set_stance("force_eager"):
        yield


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "normal": normal(96, 128) * 0.02,
        "more than one block of scales": normal(300, 320),
        "cut short": normal(7, 19),
        "outliers": normal(64, 64) * torch.where(normal(64, 64) > 2.5, 40.0, 1.0),
        "zeros": torch.zeros(64, 64),
        "half of it zeros": torch.cat((torch.zeros(64, 64), normal(64, 64))),
        "exact": NF4_TABLE.repeat(64).view(16, 64) * 3,
        "tiny": normal(64, 64) * 1e-30,
    }


@pytest.mark.parametrize("kind", weights())
def test_bytes_and_weights_are_those_of_bitsandbytes(kind):
    weight = weights()[kind]
    packed, state = bitsandbytes.quantize_4bit(weight, quant_type="nf4", blocksize=BLOCK)
    ours = quantize_nf4(weight, double=False)
    assert torch.equal(ours.packed, packed.view(-1)) and torch.equal(ours.absmax, state.absmax)
    expected = bitsandbytes.dequantize_4bit(packed, state)
    torch.testing.assert_close(ours.matrix(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", weights())
def test_double_quantization_is_that_of_bitsandbytes(kind):
    """Its kernel for float32 on a CPU looks codes up in a coarse table and misses the nearest for 1 scale in 200;
    the one for float64 is exact, as is CUDA's."""
    weight = weights()[kind]
    _, state = bitsandbytes.quantize_4bit(weight, quant_type="nf4", blocksize=BLOCK)
    mean = state.absmax.mean()
    code = bitsandbytes.create_dynamic_map()
    exact = torch.ops.bitsandbytes.quantize_blockwise
    codes, nested = exact((state.absmax - mean).double(), code, 256)
    ours = quantize_nf4(weight)
    assert isinstance(ours.absmax, Scales8)
    assert torch.equal(ours.packed, quantize_nf4(weight, double=False).packed)
    assert torch.equal(ours.absmax.mean, mean) and torch.equal(ours.absmax.absmax, nested)
    if nested.any():  # where all are equal, any code is right, since its scale is 0
        assert torch.equal(ours.absmax.codes, codes)
    expected = (
        bitsandbytes.dequantize_blockwise(codes, absmax=nested, code=code, blocksize=256) + mean
    )
    torch.testing.assert_close(ours.absmax.values(), expected, rtol=1e-5, atol=1e-36)
    state.absmax = expected
    back = bitsandbytes.dequantize_4bit(ours.packed[:, None], state)
    torch.testing.assert_close(ours.matrix(), back, rtol=1e-5, atol=1e-36)


def test_tables_are_those_of_bitsandbytes():
    assert torch.equal(NF4_TABLE, bitsandbytes.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(dynamic_table(), bitsandbytes.create_dynamic_map())


def test_an_error_names_the_weight():
    weight = torch.ones(64)
    weight[3] = torch.nan
    with pytest.raises(WorkError, match="blk holds NaN"):
        quantize_nf4(weight, name="blk")
