"""How the inputs of a product are shared out among programs, and how the shares' sums come together.

Few rows and few outputs do not fill a GPU, so several programs compute an output, each over some of the inputs, and
a second pass adds what they found in their order, without atomics.
"""

# What Triton compiles is not typed as Python is.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

OUTPUTS = 64  # of a program
_PROGRAMS = 528  # that fill a GPU: four for each of the 132 multiprocessors of an H100
_LEAST = 16  # blocks of a share: with fewer the second pass costs more than the first saves
_ROWS = 64  # with more they fill it


def shares_of(rows: int, out: int, blocks: int, whole: int) -> tuple[int, int]:
    """Into how many shares the inputs go, and the blocks of 32 of each: a multiple of `whole`, which divides 16."""
    if rows > _ROWS:
        return 1, blocks + -blocks % whole
    wanted = max(1, min(_PROGRAMS // triton.cdiv(out, OUTPUTS), blocks // _LEAST))
    share = -(-blocks // wanted)
    share += -share % whole
    return -(-blocks // share), share


def tall_for(rows: int, dtype: torch.dtype) -> int:
    """Rows of a program. fp32 has no tensor cores here, and registers hold no more than 16."""
    return 16 if rows <= 16 or dtype == torch.float32 else 32 if rows <= 32 else 64


def parts_for(y: Tensor, shares: int) -> Tensor:
    """Where programs put their sums: y itself if each has all inputs, else fp32 [shares, rows, out]."""
    return y if shares == 1 else y.new_empty(shares, *y.shape, dtype=torch.float32)


def add_shares(parts: Tensor, y: Tensor) -> None:
    """y = the sum of its parts, in their order."""
    if parts is not y:
        _add[(triton.cdiv(y.numel(), 256),)](parts, y, y.numel(), len(parts), CHUNK=256)


@triton.jit
def _add(parts, y, size, shares, CHUNK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    total = tl.zeros((CHUNK,), tl.float32)
    for share in range(shares):
        total += tl.load(parts + share * size + at, mask=at < size, other=0)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=at < size)
