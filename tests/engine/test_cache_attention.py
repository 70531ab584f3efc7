"""Keys and values kept in float16, int8 and int4: what is kept, and what native attention makes of it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from gristmill import kernels
from gristmill.engine.kept import CACHE_DTYPES, decode, encode
from gristmill.engine.ragged import Span, ragged
from gristmill.kernels import array, extension

needs_native = pytest.mark.skipif(
    extension is None, reason="gristmill._native was not built (no C++ compiler)"
)
NARROW = CACHE_DTYPES[1:]
ISAS = kernels.instruction_sets()
BLOCK, TOKENS = 32, 75


# What is kept.


def rounded(x: list[float], kept: str) -> list[float]:
    """The definition, number by number."""
    if kept == "float16":
        return [float(np.float32(v).astype(np.float16)) for v in x]
    if kept == "int8":
        scale = np.float32(max(abs(v) for v in x)) / np.float32(127)
        codes = [round(float(np.float32(v) / scale)) if scale else 0 for v in x]
        return [float(np.float32(max(-127, min(127, c))) * scale) for c in codes]
    out: list[float] = []
    for group in (x[i : i + 32] for i in range(0, len(x), 32)):
        wide = np.float32(max(group)) - np.float32(min(group))
        least, scale = np.float16(min(group)), np.float16(wide / np.float32(15))
        for v in group:
            step = np.float32(scale) or np.float32(1)
            code = max(0, min(15, round(float((np.float32(v) - np.float32(least)) / step))))
            out.append(float(np.float32(code * float(scale) + float(least))))
    return out


def ties(width: int) -> Tensor:
    """Two vectors, [2, width]: int4 has a step of 1 in the first and int8 in the second, and every other is a tie."""
    at = torch.arange(width) % 32
    x = (at * 0.5).clamp(max=15.0).where(at != 1, 15.0).repeat(2, 1)
    x[1, 0] = 127.0
    return x


def awkward(width: int) -> Tensor:
    """Vectors of many sizes: plain, tiny, huge, off centre, with one outlier, equal, zero, and full of ties."""
    x = torch.randn(10, width, generator=torch.Generator().manual_seed(width))
    x[1] *= 1e-6
    x[2] *= 2e4 / x[2].abs().max()
    x[3] += 300.0
    x[4, width // 2] = 500.0
    x[5] = 2.7
    x[6] = 0.0
    x[7] *= 1e-40
    x[8:] = ties(width)
    return x


@pytest.mark.parametrize("width", [1, 8, 20, 33, 64, 96])
@pytest.mark.parametrize("kept", NARROW)
def test_what_is_kept_is_the_definition(kept, width):
    x = awkward(width)
    found = decode(encode(x, kept), width)
    assert found.dtype == torch.float32
    assert found.tolist() == [rounded(row, kept) for row in x.tolist()]
    assert decode(encode(x, "float32"), width) is x


@pytest.mark.parametrize("kept", ["int8", "int4"])
def test_the_error_is_half_a_step_at_most(kept):
    x = awkward(96)
    groups = x.unflatten(-1, (-1, 96 if kept == "int8" else 32))
    high, low = groups.amax(-1, True), groups.amin(-1, True)
    step = groups.abs().amax(-1, True) / 127 if kept == "int8" else (high - low) / 15
    # fp16 holds scale and least to one part in 2,048 and 2^-24; the highest code multiplies the scale's error by 15.
    slack = 0.0 if kept == "int8" else (low.abs() + high - low) / 2048 + 16 * 2.0**-24
    error = (decode(encode(x, kept), 96).unflatten(-1, groups.shape[1:]) - groups).abs()
    assert (error <= step / 2 + slack + 1e-6 * groups.abs()).all()


# What attention makes of it. A program whose queries, keys and values are rows of tables, named by "tokens".


class Attending:
    def __init__(self, kept, q_NHC, k_NKC, v_NKC, *, isa="best", window=0, softcap=0.0, sinks=None):
        assert extension is not None
        (_, self.heads, self.width), kv_heads = q_NHC.shape, k_NKC.shape[1]
        self.program = extension.Program(isa)
        self.tables = [t.flatten(1).contiguous() for t in (q_NHC, k_NKC, v_NKC)]
        sizes = [t.shape[1] for t in self.tables]
        q, k, v, out = (self.program.buffer(size) for size in (*sizes, sizes[0]))
        for buffer, table in zip((q, k, v), self.tables, strict=True):
            rows, width = table.shape
            lines = extension.Table(array(table), rows)
            self.program.embed(buffer, lines, width, 1.0, array(None), 0)
        number = CACHE_DTYPES.index(kept)
        bytes_ = extension.block_bytes(number, BLOCK, kv_heads, self.width)
        # What was never written must not matter.
        self.cache = [torch.full((8, size), 255, dtype=torch.uint8) for size in bytes_]
        addresses = [t.data_ptr() for t in self.cache]
        self.sinks = sinks
        where = (number, BLOCK, window, self.width**-0.5, softcap, array(sinks))
        self.program.attention(
            q, k, v, out, -1, self.heads, kv_heads, self.width, *addresses, *where
        )
        self.program.result(out, sizes[0])

    def run(self, begin: int, end: int) -> Tensor:
        span = Span(range(begin, end), begin, [5, 0, 3], end, end - begin)
        batch = ragged([span], BLOCK)
        out = torch.empty(end - begin, self.heads, self.width)
        arrays = (batch.tokens_N, batch.positions_N, batch.slots_N, batch.starts, batch.tables_RB)
        addresses = [a.ctypes.data for a in (*arrays, batch.lengths_R, batch.wanted_W)]
        self.program.run(end - begin, 1, 3, end - begin, *addresses, 0, out.data_ptr(), 2)
        return out


def qkv(width: int, heads=4, kv_heads=2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(width)
    drawn = [
        torch.randn(TOKENS, n, width, generator=generator) for n in (heads, kv_heads, kv_heads)
    ]
    drawn[1][:, :, width // 3] += 6.0  # keys have channels of their own
    return drawn


def by_hand(q, k, v, window=0, softcap=0.0, sinks=None) -> Tensor:
    """Attention as it is defined, in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = torch.einsum("nhc,shc->hns", q, k) * q.shape[-1] ** -0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(len(q))
    seen = at[None] <= at[:, None]
    if window:
        seen &= at[:, None] - at[None] < window
    scores = scores.masked_fill(~seen, -math.inf)
    if sinks is not None:
        extra = sinks.double()[:, None, None].expand(-1, len(q), 1)
        scores = torch.cat((scores, extra), -1)
    return torch.einsum("hns,shc->nhc", scores.softmax(-1)[..., : len(q)], v)


KINDS = [{}, {"window": 13}, {"softcap": 5.0, "sinks": torch.tensor([0.5, -1.0, 3.0, 0.0])}]


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 20, 33, 64])
@pytest.mark.parametrize("kept", NARROW)
def test_native_attention_reads_what_the_twin_keeps(kept, width, isa):
    """Bit for bit what it makes of a float32 cache that holds the twin's rounded numbers."""
    q, k, v = qkv(width)
    k[5:7, 0], v[8:10, 1] = ties(width), ties(width)
    k_kept, v_kept = (decode(encode(t, kept), width) for t in (k, v))
    for kind in KINDS:
        found = Attending(kept, q, k, v, isa=isa, **kind)
        expected = Attending("float32", q, k_kept, v_kept, isa=isa, **kind).run(0, TOKENS)
        assert torch.equal(found.run(0, TOKENS), expected)
        by_definition = by_hand(q, k_kept, v_kept, **kind)
        torch.testing.assert_close(expected.double(), by_definition, rtol=0, atol=5e-4)
        if isa == "avx2":
            assert torch.equal(Attending(kept, q, k, v, **kind).run(0, TOKENS), expected)


@needs_native
@pytest.mark.parametrize("kept", NARROW)
def test_pieces_are_the_whole(kept):
    q, k, v = qkv(33)
    expected = Attending(kept, q, k, v, window=40).run(0, TOKENS)
    for cuts in ([0, 1, 17, 40, TOKENS], list(range(TOKENS + 1))):
        again = Attending(kept, q, k, v, window=40)
        assert torch.equal(torch.cat([again.run(*piece) for piece in pairwise(cuts)]), expected)


@needs_native
@pytest.mark.parametrize("width", [20, 64])
@pytest.mark.parametrize("kept", NARROW)
def test_the_price_is_within_the_bound(kept, width):
    """Keys off by dk move scores by e = scale |q|₁ dk at most, shares by a factor of exp(2e), and the result by
    (exp(2e) - 1) max|v| + dv."""
    q, k, v = qkv(width)
    q *= 0.05  # so that the bound says something

    def off(x: Tensor) -> float:
        if kept == "float16":
            return float(x.abs().max()) * 2.0**-11
        if kept == "int8":
            return float(x.abs().max()) / 254
        return float(x.max() - x.min()) / 30 + float(x.abs().max()) * 2.0**-10

    e = float(q.abs().sum(-1).max()) * width**-0.5 * off(k)
    bound = math.expm1(2 * e) * float(v.abs().max()) + off(v) + 1e-5
    found = Attending(kept, q, k, v).run(0, TOKENS)
    assert (found - by_hand(q, k, v)).abs().max() <= bound


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kept", CACHE_DTYPES)
def test_what_is_no_number_reaches_those_who_see_it(kept, isa):
    q, k, v = qkv(20)
    plain = Attending(kept, q, k, v, isa=isa).run(0, TOKENS)
    for spoiled, value in ((1, math.nan), (2, math.nan), (2, math.inf), (2, -math.inf)):
        parts = [q, k.clone(), v.clone()]
        parts[spoiled][30, 1, 7] = value
        found = Attending(kept, *parts, isa=isa).run(0, TOKENS)
        assert torch.equal(found[:30], plain[:30])
        assert torch.equal(found[:, :2], plain[:, :2])  # the other head's
        assert not found[30:, 2:].isfinite().all(-1).any()
        decoded = decode(encode(parts[spoiled], kept), 20)
        assert not decoded[30, 1].isfinite().all() and decoded[31].isfinite().all()


@needs_native
def test_numbers_too_large_are_not_passed_off_as_others():
    """float16 ends at 65504, and so do the steps of int4; int8's scales are fp32."""
    q, k, v = qkv(20)
    v[30, 1, 7] = 1e7
    for kept, held in (("float32", True), ("float16", False), ("int8", True), ("int4", False)):
        found = Attending(kept, q, k, v).run(0, TOKENS)
        assert bool(found.isfinite().all()) is held, kept
        assert bool(decode(encode(v, kept), 20).isfinite().all()) is held, kept


@needs_native
@pytest.mark.parametrize("kept", NARROW)
def test_zeros_stay_zeros(kept):
    q, k, v = qkv(20)
    found = Attending(kept, q, torch.zeros_like(k), torch.zeros_like(v)).run(0, TOKENS)
    assert (found == 0).all()
