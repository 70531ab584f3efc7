"""Rounding to nearest: against compressed-tensors, GPTQ's own formula, and what fp16 can and cannot hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from hypothesis import given
from hypothesis import strategies as st

from gristmill.errors import RequestError, WorkError
from gristmill.quantize.grid import round_to_nearest, search_shrink


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 128, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_and_values_are_those_of_compressed_tensors(bits, group, symmetric):
    """Given our scales and zeros, its fake quantization finds the same weights."""
    weight = random(24, 256)
    codes = round_to_nearest(weight, bits=bits, group=group, symmetric=symmetric)
    half = 2 ** (bits - 1)
    args = QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy="channel" if group is None else "group",
        group_size=group,
    )
    zero = codes.zero.to(torch.int16) - half
    theirs = fake_quantize(weight, codes.scale.float(), zero, args)
    torch.testing.assert_close(codes.matrix(), theirs, rtol=1e-6, atol=0)
    assert codes.q.max().item() < 2**bits and codes.symmetric == symmetric


def test_the_symmetric_grid_is_that_of_gptq():
    """zero 2^(b−1) and 2·absmax/(2^b − 1) a step, from IST-DASLab's `Quantizer.find_params`, in numpy."""
    weight = random(5, 64)
    codes = round_to_nearest(weight, bits=4, group=32)
    grouped = weight.numpy().reshape(5, 2, 32)
    scale = (np.abs(grouped).max(-1) * np.float32(2) / np.float32(15)).astype(np.float16)
    q = np.clip(np.rint(grouped / scale.astype(np.float32)[..., None]) + 8, 0, 15)
    assert (codes.scale.numpy() == scale).all() and (codes.zero == 8).all()
    assert (codes.q.numpy().reshape(grouped.shape) == q).all()


def test_the_asymmetric_grid_reaches_zero_though_no_weight_does():
    codes = round_to_nearest(random(8, 64).abs() + 5, group=32, symmetric=False)
    assert (codes.zero == 0).all()
    assert (
        codes.scale.float().mul(15).sub(random(8, 64).abs().view(8, 2, 32).amax(-1) + 5).abs().max()
        < 0.01
    )
    below = round_to_nearest(-random(8, 64).abs() - 5, group=32, symmetric=False)
    assert (below.zero == 15).all()


@given(st.floats(1e-12, 1e4), st.booleans(), st.integers(2, 8))
def test_no_weight_moves_further_than_the_grid_allows(size, symmetric, bits):
    weight = random(3, 32) * size
    codes = round_to_nearest(weight, bits=bits, group=16, symmetric=symmetric)
    # Half a step; at the upper end of the symmetric grid up to a whole one less what fp16 rounds away.
    step = codes.scale.float().repeat_interleave(16, 1)
    assert codes.scale.isfinite().all() and (codes.scale > 0).all()
    assert ((codes.matrix() - weight).abs() <= step * (0.5 + 2**bits * 2**-11) + 1e-12).all() or (
        step < 6.2e-5
    ).any()


def test_a_group_of_zeros_stays_zero():
    weight = random(4, 64)
    weight[1, 32:], weight[2] = 0, 0
    for symmetric in (True, False):
        codes = round_to_nearest(weight, group=32, symmetric=symmetric)
        assert codes.scale[1, 1] == 1 and (codes.matrix()[2] == 0).all()
        assert (codes.matrix()[1, 32:] == 0).all()


def test_scales_below_fp16_become_its_smallest_number():
    codes = round_to_nearest(torch.full((1, 32), 3e-8), group=32)
    assert codes.scale.item() == 2**-24
    # 3e-8 lies halfway between 0 and 2^-24; a value well above is kept.
    kept = round_to_nearest(torch.full((1, 32), 1.3e-7), group=32)
    assert kept.matrix()[0, 0].item() == pytest.approx(1.3e-7, rel=0.1)


def test_scales_are_rounded_before_codes_are_chosen():
    """With bf16's coarse scales the nearest codes differ from those of the exact scale, and lose less."""
    weight = random(64, 128)
    codes = round_to_nearest(weight, bits=8, group=None, scale_dtype=torch.bfloat16)
    exact = round_to_nearest(weight, bits=8, group=None, scale_dtype=torch.float32)
    assert codes.scale.dtype == torch.bfloat16 and (codes.q != exact.q).any()
    late = (exact.q.float() - 128) * codes.scale.float()
    assert (codes.matrix() - weight).square().sum() < (late - weight).square().sum()


def test_shrink_cuts_the_range():
    weight = random(6, 64)
    shrink = torch.full((6, 2), 0.5)
    for symmetric in (True, False):
        codes = round_to_nearest(weight, group=32, symmetric=symmetric, shrink=shrink)
        absmax = weight.view(6, 2, 32).abs().amax(-1, keepdim=True)
        clamped = weight.view(6, 2, 32).clamp(-absmax / 2, absmax / 2).view(6, 64)
        expected = round_to_nearest(clamped, group=32, symmetric=symmetric)
        assert torch.equal(codes.scale, expected.scale) and torch.equal(codes.zero, expected.zero)
        # What is cut lies half a step beyond the grid, or nearly: a tie that may go either way.
        inside = clamped == weight
        assert torch.equal(codes.q[inside], expected.q[inside]) and not inside.all()
        assert (codes.q.int() - expected.q.int()).abs().max() <= 1


def test_the_search_for_a_narrower_range_is_brute_force():
    groups = random(8, 3, 32)
    found = search_shrink(groups, 4, True)

    def lost(shrink: float) -> torch.Tensor:
        cut = torch.full((8, 3), shrink)
        back = round_to_nearest(groups.view(8, 96), group=32, shrink=cut).matrix()
        return (back.view(8, 3, 32) - groups).abs().pow(2.4).sum(-1)

    candidates = [1 - step / 100 for step in range(80)]
    losses = torch.stack([lost(shrink) for shrink in candidates])
    torch.testing.assert_close(found, torch.tensor(candidates)[losses.argmin(0)])
    assert len(found.unique()) > 3


def test_errors_name_the_weight_and_the_cure():
    with pytest.raises(RequestError, match="up_proj has 96 inputs, which groups of 128 do not div"):
        round_to_nearest(random(4, 96), name="up_proj")
    with pytest.raises(RequestError, match="groups of 0"):
        round_to_nearest(random(4, 96), group=0)
    for bad in (torch.nan, torch.inf, -torch.inf):
        weight = random(4, 64)
        weight[2, 3] = bad
        with pytest.raises(WorkError, match="up_proj holds NaN or infinity"):
            round_to_nearest(weight, group=64, name="up_proj")
    huge = torch.full((1, 32), 6e5)
    with pytest.raises(
        WorkError, match=r"up_proj holds a value of 6e\+05, whose scale is too large"
    ):
        round_to_nearest(huge, group=32, name="up_proj")
    assert round_to_nearest(huge, group=32, scale_dtype=torch.bfloat16).scale.isfinite().all()


def test_a_weight_laid_out_otherwise_is_the_same_weight():
    weight = random(64, 24).T
    assert torch.equal(
        round_to_nearest(weight, group=32).q, round_to_nearest(weight.contiguous(), group=32).q
    )
