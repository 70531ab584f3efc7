"""What Triton kernels read of a coded matrix: its layout is the CPU's own (src/native/coded.h, coded/layout.py).

Sixteen output rows lie side by side there, four bytes of each after one another, so a warp reads whole lines of
memory, and a matrix needs no second copy on the GPU. A block of 32 inputs has a low half (inputs 0 to 15) and a
high half; every coding says W = factor · (code - zero) + least for all inputs of a half and a row.
"""

# What Triton compiles is not typed as Python is.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def grid_of(
    scales,
    raw,
    strip,
    lane,
    stride,
    record,
    block,
    there,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    FORM: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of a block of a record, for the rows `strip * 16 + lane`: factors of both halves, zero, least; fp32.

    scales, raw: the packed matrix as fp16 (fp32 if WIDE) and as uint8. stride: bytes of a strip. block: its number
    within the record. FORM: fields of the header and the blocks, as CODINGS names them.
    """
    item: tl.constexpr = 4 if WIDE else 2
    if FORM == "scale zero":
        size: tl.constexpr = 16 * item + 16
    elif FORM == "d":
        size: tl.constexpr = 32
    elif FORM == "d m":
        size: tl.constexpr = 64
    elif FORM == "d dmin scale min":
        size: tl.constexpr = 64 + 8 * 32
    else:
        size: tl.constexpr = 32 + 8 * 32
    start = strip.to(tl.int64) * stride + record * size
    low = tl.load(scales + start // item + lane, mask=there, other=0).to(tl.float32)
    high = low
    zero = tl.zeros_like(low) + OFFSET
    least = tl.zeros_like(low)
    if FORM == "scale zero":
        signed = tl.load(raw + start + 16 * item + lane, mask=there, other=0)
        zero = (signed ^ 128 if BITS == 8 else signed).to(tl.float32)
    elif FORM == "d m":
        least = tl.load(scales + start // 2 + 16 + lane, mask=there, other=0).to(tl.float32)
    elif FORM == "d dmin scale min":
        dmin = tl.load(scales + start // 2 + 16 + lane, mask=there, other=0).to(tl.float32)
        inner = raw + start + 64 + block * 32 + lane
        low *= tl.load(inner, mask=there, other=0).to(tl.float32)
        high = low
        least = -dmin * tl.load(inner + 16, mask=there, other=0).to(tl.float32)
    elif FORM == "d scale":
        inner = raw + start + 32 + block * 32 + lane
        high = low * tl.load(inner + 16, mask=there, other=0).to(tl.int8, bitcast=True).to(
            tl.float32
        )
        low *= tl.load(inner, mask=there, other=0).to(tl.int8, bitcast=True).to(tl.float32)
    return low, high, zero, least


@triton.jit
def words_of(words, at, word, there, BITS: tl.constexpr):
    """What holds the codes of four inputs, `word` (0 to 3), of both halves of a block: int32, three at most.

    words: the packed matrix as int32. at: where in it the rows' parts of the block begin. Without a second or third
    word it is the first again.
    """
    first = tl.load(words + at + word * 16, mask=there, other=0)
    second, third = first, first
    if BITS == 8:
        second = tl.load(words + at + word * 16 + 64, mask=there, other=0)
    elif BITS > 4:
        second = tl.load(words + at + 64, mask=there, other=0)
    if BITS == 6:
        third = tl.load(words + at + 80, mask=there, other=0)
    return first, second, third


@triton.jit
def codes_of(first, second, third, word, i, BITS: tl.constexpr):
    """The codes of input `i` of the four in both halves, int32, never negative: those of 8 bits, which are signed in
    memory, are 128 higher.
    """
    if BITS == 8:
        low, high = (first >> 8 * i) & 255 ^ 128, (second >> 8 * i) & 255 ^ 128
    else:
        low, high = (first >> 8 * i) & 15, (first >> (8 * i + 4)) & 15
        if BITS == 5:
            low |= ((second >> (8 * i + word)) & 1) << 4
            high |= ((second >> (8 * i + word + 4)) & 1) << 4
        elif BITS == 6:
            low |= ((second >> (8 * i + 2 * word)) & 3) << 4
            high |= ((third >> (8 * i + 2 * word)) & 3) << 4
    return low, high


@triton.jit
def less_zero(code, zero):
    """code - zero in fp32, exactly: a code in the last bits of 2**23 costs no conversion of integers."""
    return (code | 0x4B000000).to(tl.float32, bitcast=True) - (zero + 8388608.0)
