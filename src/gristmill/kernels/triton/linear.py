"""x Wᵀ on coded weights and 16-bit (or fp32) activations: one row, and several.

Nothing is rounded on the way: codes less their zeros are whole numbers that fp16 and bf16 hold exactly, and factors
multiply the sums of a group in fp32. Tiles and shares (`shares.py`) are chosen by shapes alone, and nothing is tuned at
run time, so the same call gives the same bits.
"""

# What Triton compiles is not typed as Python is.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from gristmill.kernels.coded import BLOCK, STRIP, Coding
from gristmill.kernels.triton.reading import codes_of, grid_of, less_zero, words_of
from gristmill.kernels.triton.shares import OUTPUTS, add_shares, parts_for, shares_of, tall_for

_BLOCKS = 8  # that `_one_row` takes at a time


@triton.jit
def _one_row(
    x,
    words,
    scales,
    raw,
    y,
    width,
    out,
    padded,
    stride,
    codes_at,
    blocks,
    share,
    PER_RECORD: tl.constexpr,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    FORM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """y [shares, out] = x [width] Wᵀ over a share of the inputs; words: the matrix as int32."""
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    strip, lane = (n // 16)[None, :], (n % 16)[None, :]
    row = tl.arange(0, 4 * BLOCKS)
    word = row % 4
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, blocks)
    in_block: tl.constexpr = 128 if BITS == 8 else 16 * BITS  # words
    total = tl.zeros((4 * BLOCKS, OUTPUTS), tl.float32)
    for start in range(begin, end, BLOCKS):
        block = start + row // 4
        there = (block < end)[:, None] & (n < padded)[None, :]
        record, within = (block // PER_RECORD)[:, None], (block % PER_RECORD)[:, None]
        a_low, a_high, zero, least = grid_of(
            scales, raw, strip, lane, stride, record, within, there, BITS, OFFSET, FORM, WIDE
        )
        at = strip.to(tl.int64) * (stride // 4) + codes_at // 4 + block[:, None] * in_block + lane
        first, second, third = words_of(words, at, word[:, None], there, BITS)
        sum_low = tl.zeros_like(total)
        sum_high = tl.zeros_like(total)
        x_sum = tl.zeros((4 * BLOCKS,), tl.float32)
        for i in tl.static_range(4):
            low, high = codes_of(first, second, third, word[:, None], i, BITS)
            k = block * 32 + word * 4 + i
            x_low = tl.load(x + k, mask=(block < end) & (k < width), other=0).to(tl.float32)
            x_high = tl.load(x + k + 16, mask=(block < end) & (k + 16 < width), other=0).to(
                tl.float32
            )
            sum_low += x_low[:, None] * less_zero(low, zero)
            sum_high += x_high[:, None] * less_zero(high, zero)
            x_sum += x_low + x_high
        total += a_low * sum_low + a_high * sum_high
        if FORM == "d m" or FORM == "d dmin scale min":
            total += least * x_sum[:, None]
    y_at = tl.program_id(1).to(tl.int64) * out + n
    tl.store(y + y_at, tl.sum(total, 0).to(y.dtype.element_ty), mask=n < out)


@triton.jit(do_not_specialize=["rows"])
def _rows(
    x,
    words,
    scales,
    raw,
    y,
    rows,
    width,
    out,
    padded,
    stride,
    codes_at,
    steps,
    share,
    PER_RECORD: tl.constexpr,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    FORM: tl.constexpr,
    WIDE: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """y [shares, rows, out] = x [rows, width] Wᵀ over a share of the inputs, SPAN blocks with one scale at a time."""
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    m = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    strip, lane, inside = n // 16, n % 16, n < padded
    row, place = tl.arange(0, 4 * SPAN), tl.arange(0, 16 * SPAN)
    word, four = row % 4, tl.arange(0, 4)[None, :, None]
    in_block: tl.constexpr = 128 if BITS == 8 else 16 * BITS  # words
    kind = x.dtype.element_ty
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    begin = tl.program_id(2) * share
    for step in range(begin, tl.minimum(begin + share, steps)):
        block = step * SPAN
        a_low, a_high, zero, least = grid_of(
            scales,
            raw,
            strip,
            lane,
            stride,
            block // PER_RECORD,
            block % PER_RECORD,
            inside,
            BITS,
            OFFSET,
            FORM,
            WIDE,
        )
        at = (strip.to(tl.int64) * (stride // 4) + codes_at // 4 + lane)[None, :]
        at += ((block + row // 4) * in_block)[:, None]
        first, second, third = words_of(words, at, word[:, None], inside[None, :], BITS)
        low, high = codes_of(
            first[:, None, :],
            second[:, None, :],
            third[:, None, :],
            word[:, None, None],
            four,
            BITS,
        )
        zero = zero[None, None, :]
        low = tl.reshape(less_zero(low, zero).to(kind), (16 * SPAN, OUTPUTS))
        high = tl.reshape(less_zero(high, zero).to(kind), (16 * SPAN, OUTPUTS))
        k = ((block + place // 16) * 32 + place % 16)[None, :]
        x_at = x + m[:, None] * width + k
        real = (m < rows)[:, None]
        x_low = tl.load(x_at, mask=real & (k < width), other=0)
        x_high = tl.load(x_at + 16, mask=real & (k + 16 < width), other=0)
        if FORM == "d scale":
            total += tl.dot(x_low, low, input_precision="ieee") * a_low[None, :]
            total += tl.dot(x_high, high, input_precision="ieee") * a_high[None, :]
        else:
            both = tl.dot(x_low, low, input_precision="ieee")
            both = tl.dot(x_high, high, both, input_precision="ieee")
            total += both * a_low[None, :]
        if FORM == "d m" or FORM == "d dmin scale min":
            x_sum = tl.sum(x_low.to(tl.float32), 1) + tl.sum(x_high.to(tl.float32), 1)
            total += x_sum[:, None] * least[None, :]
    y_at = (tl.program_id(2) * rows + m)[:, None] * out + n[None, :]
    kept = (m < rows)[:, None] & (n < out)[None, :]
    tl.store(y + y_at, total.to(y.dtype.element_ty), mask=kept)


def coded_linear_triton(
    x: Tensor, kind: Coding, packed: Tensor, out: int, group: int, wide: bool
) -> Tensor:
    """x [..., in] fp32, fp16 or bf16 times a matrix packed by `coded.pack`, [..., out] in the dtype of x.

    group: inputs of a record. wide: whether the scales of "int4" and "int8" are fp32, not fp16.
    """
    width = x.shape[-1]
    flat = x.reshape(-1, width).contiguous()
    rows, per_record = len(flat), -(-group // BLOCK)
    y = x.new_empty(rows, out)
    if rows == 0:
        return y.view(*x.shape[:-1], out)
    blocks = width // group * per_record
    # Blocks with one scale that `_rows` takes at a time.
    span = 1 if kind.record else gcd(per_record, 4)
    shares, share = shares_of(rows, out, blocks, _BLOCKS if rows == 1 else span)
    parts = parts_for(y, shares)
    scales = packed.view(torch.float32 if wide else torch.float16)
    matrix = (packed.view(torch.int32), scales, packed)
    stride = packed.shape[1]
    codes_at = stride - blocks * (512 if kind.bits == 8 else 64 * kind.bits)
    where = (width, out, len(packed) * STRIP, stride, codes_at)
    form = {
        "PER_RECORD": per_record,
        "BITS": kind.bits,
        "OFFSET": 128 if kind.bits == 8 else kind.offset,  # as `codes_of` gives them
        "FORM": " ".join(kind.header + kind.block),
        "WIDE": wide,
        "OUTPUTS": OUTPUTS,
    }
    columns = triton.cdiv(out, OUTPUTS)
    with torch.cuda.device_of(x):
        if rows == 1:
            grid = (columns, shares)
            _one_row[grid](flat, *matrix, parts, *where, blocks, share, **form, BLOCKS=_BLOCKS)
        else:
            tall = tall_for(rows, x.dtype)
            grid = (columns, triton.cdiv(rows, tall), shares)
            steps = (blocks // span, -(-share // span))
            tile = {"SPAN": span, "ROWS": tall}
            _rows[grid](flat, *matrix, parts, rows, *where, *steps, **form, **tile, num_stages=3)
        add_shares(parts, y)
    return y.view(*x.shape[:-1], out)
