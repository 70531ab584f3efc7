"""y = scale ⊙ (W x) with W int8 as compressed-tensors keeps it, [out, in], and 16-bit or fp32 activations.

Every int8 value is exact in fp16 and bf16, so tensor cores multiply the weights as they are; scales multiply the
sums in fp32.
"""

# What Triton compiles is not typed as Python is.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gristmill.kernels.triton.shares import OUTPUTS, add_shares, parts_for, shares_of, tall_for

_INPUTS = 128  # at a time
_INPUTS_FP32 = 32  # which has no tensor cores: registers hold no more


@triton.jit(do_not_specialize=["rows"])
def _rows(
    x,
    weight,
    scale,
    y,
    rows,
    width,
    out,
    share,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """y [shares, rows, out] over `share` of the inputs, a multiple of INPUTS."""
    n = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    m = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    begin = tl.program_id(2) * share
    for start in range(begin, tl.minimum(begin + share, width), INPUTS):
        k = start + tl.arange(0, INPUTS)
        there = k < width
        x_at = x + m[:, None] * width + k[None, :]
        some = tl.load(x_at, mask=(m < rows)[:, None] & there[None, :], other=0)
        w_at = weight + n[None, :] * width + k[:, None]
        codes = tl.load(w_at, mask=(n < out)[None, :] & there[:, None], other=0)
        codes = codes.to(tl.float32).to(
            x.dtype.element_ty
        )  # which the interpreter cannot do in one step
        total = tl.dot(some, codes, total, input_precision="ieee")
    total *= tl.load(scale + n, mask=n < out, other=0)[None, :]
    y_at = (tl.program_id(2) * rows + m)[:, None] * out + n[None, :]
    kept = (m < rows)[:, None] & (n < out)[None, :]
    tl.store(y + y_at, total.to(y.dtype.element_ty), mask=kept)


def int8_linear_triton(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """x [..., in] fp32, fp16 or bf16, weight int8 [out, in], weight_scale fp32 [out, 1] -> [..., out], dtype of x."""
    out, width = weight.shape
    flat = x.reshape(-1, width).contiguous()
    rows = len(flat)
    y = x.new_empty(rows, out)
    if rows:
        shares, share = shares_of(rows, out, -(-width // 32), _INPUTS // 32)
        parts = parts_for(y, shares)
        inputs = _INPUTS_FP32 if x.dtype == torch.float32 else _INPUTS
        tall = tall_for(rows, x.dtype)
        grid = (triton.cdiv(out, OUTPUTS), triton.cdiv(rows, tall), shares)
        tile = {"ROWS": tall, "OUTPUTS": OUTPUTS, "INPUTS": inputs}
        matrix, sizes = (weight.contiguous(), weight_scale.contiguous()), (rows, width, out)
        with torch.cuda.device_of(x):
            _rows[grid](flat, *matrix, parts, *sizes, share * 32, **tile, num_stages=3)
            add_shares(parts, y)
    return y.view(*x.shape[:-1], out)
