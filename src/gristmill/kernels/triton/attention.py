"""Attention of single queries over a paged cache, without gathering what they see.

A query's positions are cut at multiples of `_PIECE`, whatever else is in the batch; a program goes over one piece for
the query heads that share a key head, and a second pass brings the pieces together by the logarithms of their sums.
"""

# What Triton compiles is not typed as Python is.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIECE = 256  # positions of a program
_AT_ONCE = 32  # of them


@triton.jit(do_not_specialize=["longest_table", "pieces"])
def _piece(
    q,
    keys,
    values,
    tables,
    positions,
    out,
    weight,
    scale,
    softcap,
    longest_table,
    pieces,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    KEY: tl.constexpr,
    KEY_PADDED: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_PADDED: tl.constexpr,
    PIECE: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """out [R, H, pieces, VALUE] and weight [R, H, pieces], the logarithm of what out was divided by; fp32."""
    row, head, piece = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    last = tl.load(positions + row).to(tl.int32)
    g, c, d = tl.arange(0, GROUP_PADDED), tl.arange(0, KEY_PADDED), tl.arange(0, VALUE_PADDED)
    mine = (row * KEY_HEADS + head) * GROUP + g
    q_at = q + mine[:, None] * KEY + c[None, :]
    query = tl.load(q_at, mask=(g < GROUP)[:, None] & (c < KEY)[None, :], other=0)
    begin, end = piece * PIECE, tl.minimum(piece * PIECE + PIECE, last + 1)
    if WINDOW > 0:
        begin = tl.maximum(begin, (last - WINDOW + 1) // AT_ONCE * AT_ONCE)
    highest = tl.full((GROUP_PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_PADDED,), tl.float32)
    sums = tl.zeros((GROUP_PADDED, VALUE_PADDED), tl.float32)
    for start in range(begin, end, AT_ONCE):
        p = start + tl.arange(0, AT_ONCE)
        seen = p < end
        if WINDOW > 0:
            seen = seen & (last - p < WINDOW)
        block = tl.load(tables + row * longest_table + p // BLOCK_SIZE, mask=seen, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + p % BLOCK_SIZE
        at = slot * KEY_HEADS + head
        k_at = keys + at[None, :] * KEY + c[:, None]
        k = tl.load(k_at, mask=seen[None, :] & (c < KEY)[:, None], other=0).to(query.dtype)
        scores = tl.dot(query, k, input_precision="ieee") * scale
        if SOFTCAP:
            # tanh(t) = 1 - 2 / (exp(2t) + 1), which holds at both ends
            scores = softcap * (1 - 2 / (tl.exp(2 * scores / softcap) + 1))
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # A score that is not a number must stay one: tl.max may pass over it, the sum does not.
        shrink = tl.where(highest == float("-inf"), 0.0, tl.exp(highest - higher))
        shares = tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(shares, 1)
        v_at = values + at[:, None] * VALUE + d[None, :]
        v = tl.load(v_at, mask=seen[:, None] & (d < VALUE)[None, :], other=0).to(query.dtype)
        sums = sums * shrink[:, None] + tl.dot(shares.to(query.dtype), v, input_precision="ieee")
        highest = higher
    empty = begin >= end
    place = mine * pieces + piece
    logarithm = tl.where(empty, float("-inf"), highest + tl.log(tl.where(empty, 1.0, total)))
    tl.store(weight + place, logarithm, mask=g < GROUP)
    mean = sums / tl.where(empty, 1.0, total)[:, None]
    kept = (g < GROUP)[:, None] & (d < VALUE)[None, :]
    tl.store(out + place[:, None] * VALUE + d[None, :], mean, mask=kept)


@triton.jit(do_not_specialize=["pieces"])
def _together(
    parts,
    weights,
    sinks,
    out,
    pieces,
    heads,
    SINKS: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_PADDED: tl.constexpr,
):
    """out [R, H, VALUE]: the pieces' means, weighted, in their order. sinks: one more score for each head."""
    mine = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, VALUE_PADDED)
    highest = tl.full((), float("-inf"), tl.float32)
    if SINKS:
        highest = tl.load(sinks + mine % heads).to(tl.float32)
    total = tl.full((), 0.0, tl.float32)
    if SINKS:
        total += 1.0
    sums = tl.zeros((VALUE_PADDED,), tl.float32)
    for piece in range(pieces):
        at = mine * pieces + piece
        weight = tl.load(weights + at)
        if weight != float("-inf"):
            higher = tl.maximum(highest, weight)
            shrink = tl.where(highest == float("-inf"), 0.0, tl.exp(highest - higher))
            share = tl.exp(weight - higher)
            mean = tl.load(parts + at * VALUE + d, mask=d < VALUE, other=0)
            sums = sums * shrink + mean * share
            total = total * shrink + share
            highest = higher
    mean = sums / total
    tl.store(out + mine * VALUE + d, mean.to(out.dtype.element_ty), mask=d < VALUE)


def paged_attention_triton(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    positions: Tensor,
    longest: int,
    block_size: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ) v of each row over its own positions 0 to positions[r]: [R, H, C of v], dtype of q.

    q [R, H, C] fp32, fp16 or bf16. keys, values [slots, K, C] in one of these types, of which position p of row r is
    slot tables[r, p // block_size] · block_size + p % block_size. tables int32 [R, B], positions int [R], the largest
    of them `longest`. window: positions that a query sees, itself among them. softcap, sinks [H]: as in
    `gristmill.model.attend`.
    """
    rows, heads, key = q.shape
    key_heads, value = values.shape[1:]
    pieces = longest // _PIECE + 1
    parts = q.new_empty(rows, heads, pieces, value, dtype=torch.float32)
    weights = q.new_empty(rows, heads, pieces, dtype=torch.float32)
    out = q.new_empty(rows, heads, value)
    group, wide = heads // key_heads, triton.next_power_of_2(value)
    with torch.cuda.device_of(q):
        _piece[(rows, key_heads, pieces)](
            q.contiguous(),
            keys,
            values,
            tables,
            positions,
            parts,
            weights,
            scale,
            softcap or 0.0,
            tables.shape[1],
            pieces,
            BLOCK_SIZE=block_size,
            WINDOW=window or 0,
            SOFTCAP=softcap is not None,
            KEY_HEADS=key_heads,
            GROUP=group,
            GROUP_PADDED=max(16, triton.next_power_of_2(group)),
            KEY=key,
            KEY_PADDED=max(16, triton.next_power_of_2(key)),
            VALUE=value,
            VALUE_PADDED=max(16, wide),
            PIECE=_PIECE,
            AT_ONCE=_AT_ONCE,
        )
        kept = parts if sinks is None else sinks
        shape = {"SINKS": sinks is not None, "VALUE": value, "VALUE_PADDED": wide}
        _together[(rows * heads,)](parts, weights, kept, out, pieces, heads, **shape)
    return out
