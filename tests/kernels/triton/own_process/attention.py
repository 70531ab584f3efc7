"""Paged attention by Triton's interpreter, against double precision over the positions written out one by one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.kernels.triton.attention import paged_attention_triton
from gristmill.model import attend, causal

BLOCK = 16
# The last place of the shares and of the result, each cut off.
UNIT = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


def problem(positions: list[int], heads: int, key_heads: int, key: int, value: int, seed: int):
    """q, keys, values, tables: blocks in random order, what no row sees far too large to go unnoticed."""
    g = torch.Generator().manual_seed(seed)
    counts = [p // BLOCK + 1 for p in positions]
    order = torch.randperm(sum(counts) + 2, generator=g).to(torch.int32)
    tables = torch.zeros(len(positions), max(counts) + 1, dtype=torch.int32)
    keys = torch.full((len(order) * BLOCK, key_heads, key), 1e4)
    values = torch.full((len(order) * BLOCK, key_heads, value), 1e4)
    used = 0
    for row, (count, last) in enumerate(zip(counts, positions, strict=True)):
        tables[row, :count] = order[used : used + count]
        used += count
        slots = slots_of(tables[row], last)
        keys[slots] = torch.randn(last + 1, key_heads, key, generator=g)
        values[slots] = torch.randn(last + 1, key_heads, value, generator=g)
    return torch.randn(len(positions), heads, key, generator=g), keys, values, tables


def slots_of(table: torch.Tensor, last: int) -> torch.Tensor:
    p = torch.arange(last + 1)
    return table[p // BLOCK].long() * BLOCK + p % BLOCK


def exactly(q, keys, values, tables, positions, scale, window=None, softcap=None, sinks=None):
    """By its definition, fp64."""
    rows = []
    for row, last in enumerate(positions):
        seen = slots_of(tables[row], last)[0 if window is None else max(0, last + 1 - window) :]
        k, v = keys[seen].double(), values[seen].double()
        group = q.shape[1] // k.shape[1]
        for head in range(q.shape[1]):
            scores = scale * k[:, head // group] @ q[row, head].double()
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat((scores, sinks[head].double()[None]))
            shares = torch.softmax(scores, 0)[: len(seen)]
            rows.append(shares @ v[:, head // group])
    return torch.stack(rows).view(len(positions), q.shape[1], -1)


def by_kernel(q, keys, values, tables, positions, scale, **more):
    where = tables, torch.tensor(positions), max(positions), BLOCK
    return paged_attention_triton(q, keys, values, *where, scale, **more)


@settings(max_examples=12, deadline=None)
@given(
    positions=st.lists(st.integers(0, 600), min_size=1, max_size=3),
    key_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3, 4]),
    sizes=st.sampled_from([(16, 16), (24, 40), (64, 64)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    window=st.sampled_from([None, 1, 40, 300]),
    softcap=st.sampled_from([None, 5.0]),
    with_sinks=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(positions, key_heads, group, sizes, dtype, window, softcap, with_sinks, seed):
    made = problem(positions, key_heads * group, key_heads, *sizes, seed)
    q, keys, values = (t.to(dtype) for t in made[:3])
    sinks = torch.linspace(-2, 2, key_heads * group) if with_sinks else None
    case = q, keys, values, made[3], positions, sizes[0] ** -0.5
    y = by_kernel(*case, window=window, softcap=softcap, sinks=sinks)
    exact = exactly(*case, window, softcap, sinks)
    assert y.dtype == dtype and (y.double() - exact).abs().max() <= 4 * UNIT[dtype]


@pytest.mark.parametrize("window", [None, 70])
def test_equals_what_the_network_computes(window: int | None):
    """`attend`, which gathers what a row sees first."""
    positions = [300, 5]
    q, keys, values, tables = problem(positions, 4, 2, 32, 32, 0)
    y = by_kernel(q, keys, values, tables, positions, 0.2, window=window)
    for row, last in enumerate(positions):
        slots = slots_of(tables[row], last)
        k, v = keys[slots].transpose(0, 1)[None], values[slots].transpose(0, 1)[None]
        mask = causal(torch.tensor([[last]]), torch.arange(last + 1), window)
        twin = attend(q[row][None, :, None], k, v, mask, 0.2, None, None)
        assert torch.allclose(y[row], twin[0, :, 0], atol=1e-5)


def test_a_cache_of_halves_under_other_queries():
    q, keys, values, tables = problem([270], 4, 1, 32, 32, 3)
    case = keys.half(), values.half(), tables, [270], 0.2
    assert (by_kernel(q, *case).double() - exactly(q, *case)).abs().max() <= 1e-5


def test_a_row_has_the_same_bits_beside_a_longer_one():
    q, keys, values, tables = problem([40, 700], 4, 2, 16, 16, 1)
    both = by_kernel(q, keys, values, tables, [40, 700], 0.25)
    assert torch.equal(by_kernel(q[:1], keys, values, tables[:1], [40], 0.25), both[:1])


def test_scores_of_any_size():
    """Weights far below and above fp32's range but for the largest being taken off first."""
    q, keys, values, tables = problem([513], 2, 1, 16, 16, 2)
    for size in (1e-4, 3e3):
        case = q * size, keys, values, tables, [513], 1.0
        assert (by_kernel(*case).double() - exactly(*case)).abs().max() <= 1e-3


@pytest.mark.parametrize("place", ["query", "key", "value"])
def test_what_is_not_a_number_spoils_its_row_and_no_other(place: str):
    q, keys, values, tables = problem([300, 20], 2, 1, 16, 16, 4)
    slot = slots_of(tables[0], 300)[270]
    {"query": q[0], "key": keys[slot], "value": values[slot]}[place][...] = math.nan
    y = by_kernel(q, keys, values, tables, [300, 20], 0.25)
    assert y[0].isnan().all() and y[1].isfinite().all()
