"""Matrices of coded weights (GGUF's types, int4 and int8 with scales for groups) for the CPU."""

from gristmill.kernels.coded.blocks import block_bytes, fields_of
from gristmill.kernels.coded.layout import BLOCK, CODINGS, STRIP, Coding, pack, unpack
from gristmill.kernels.coded.native import (
    coded,
    coded_linear_native,
    pack_blocks,
    round_blocks,
)

__all__ = [
    "BLOCK",
    "CODINGS",
    "STRIP",
    "Coding",
    "block_bytes",
    "coded",
    "coded_linear_native",
    "fields_of",
    "pack",
    "pack_blocks",
    "round_blocks",
    "unpack",
]
