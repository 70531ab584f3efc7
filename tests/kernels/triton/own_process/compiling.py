"""The kernels as Triton compiles them for an H100, down to machine code, which needs no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gristmill.kernels import CODINGS
from gristmill.kernels.triton import attention, int8, linear, shares

SHARED_MEMORY = 227 << 10  # bytes that a program may have on an H100
POINTERS = {"x": "*bf16", "y": "*fp32", "raw": "*u8", "words": "*i32", "scales": "*fp16"}
POINTERS |= {"weight": "*i8", "scale": "*fp32", "parts": "*fp32"}


def compiled(kernel: Any, constants: dict[str, Any], types: dict[str, str], **options: Any) -> Any:
    """For bf16 activations; what is no pointer is int32."""
    names = kernel.arg_names
    signature = {name: types.get(name, "i32") for name in names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*")]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize("coding", ["int4", "int8", "Q4_1", "Q5_K", "Q6_K"])
def test_coded_linear(coding: str, rows: int):
    kind = CODINGS[coding]
    form = {
        "PER_RECORD": kind.record // 32 or 4,
        "BITS": kind.bits,
        "OFFSET": 128 if kind.bits == 8 else kind.offset,
        "FORM": " ".join(kind.header + kind.block),
        "WIDE": False,
        "OUTPUTS": shares.OUTPUTS,
    }
    if rows == 1:
        done = compiled(linear._one_row, form | {"BLOCKS": 8}, POINTERS)
    else:
        tile = {"SPAN": 1 if kind.record else 4, "ROWS": rows}
        done = compiled(linear._rows, form | tile, POINTERS, num_stages=3)
        assert "mma" in done.asm["ptx"]  # tensor cores
    assert done.asm["cubin"] and done.metadata.shared <= SHARED_MEMORY


@pytest.mark.parametrize("rows", [16, 64])
def test_8_bit_rows(rows: int):
    tile = {"ROWS": rows, "OUTPUTS": shares.OUTPUTS, "INPUTS": int8._INPUTS}
    done = compiled(int8._rows, tile, POINTERS, num_stages=3)
    assert "mma" in done.asm["ptx"] and done.metadata.shared <= SHARED_MEMORY
    assert compiled(shares._add, {"CHUNK": 256}, POINTERS | {"y": "*bf16"}).asm["cubin"]


@pytest.mark.parametrize("window", [0, 512])
def test_paged_attention(window: int):
    types = dict(q="*bf16", keys="*bf16", values="*bf16", tables="*i32", positions="*i64")
    types |= dict(out="*fp32", weight="*fp32", scale="fp32", softcap="fp32")
    shape = dict(KEY_HEADS=8, GROUP=4, GROUP_PADDED=16, BLOCK_SIZE=16, PIECE=256, AT_ONCE=32)
    shape |= dict.fromkeys(("KEY", "KEY_PADDED", "VALUE", "VALUE_PADDED"), 128)
    done = compiled(attention._piece, shape | {"WINDOW": window, "SOFTCAP": window > 0}, types)
    assert "mma" in done.asm["ptx"] and done.metadata.shared <= SHARED_MEMORY
    types = dict(parts="*fp32", weights="*fp32", sinks="*bf16", out="*bf16")
    constants = {"SINKS": window > 0, "VALUE": 128, "VALUE_PADDED": 128}
    assert compiled(attention._together, constants, types).asm["cubin"]
