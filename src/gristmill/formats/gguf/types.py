"""The tensor types of GGUF and how each lays its blocks out in bytes.

A block is a C struct of ggml (`ggml-common.h`), little-endian and without padding, so a packed numpy
structured dtype states it completely: encoding and decoding are views, and no offset is written twice.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class GGMLType(IntEnum):
    """A tensor type, with ggml's number for it. `GGMLType["Q4_K"]` finds one by name."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30
    MXFP4 = 39

    @property
    def layout(self) -> np.dtype:
        """The fields of one block."""
        return _LAYOUTS[self]

    @property
    def block_size(self) -> int:
        """Elements in one block; a tensor's last dimension must be a multiple of it."""
        if self in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
            return 1
        return 256 if self.name.endswith("_K") else 32

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.layout.itemsize

    def nbytes(self, elements: int) -> int:
        """Bytes of `elements` values, which must be whole blocks."""
        return elements // self.block_size * self.block_bytes


# In a K-type `scales` holds small integers that multiply the float16 `d` (and `dmin`).
_LAYOUTS: dict[GGMLType, np.dtype] = {
    GGMLType.F32: np.dtype([("x", "<f4")]),
    GGMLType.F16: np.dtype([("x", "<f2")]),
    GGMLType.BF16: np.dtype([("x", "<u2")]),
    GGMLType.Q4_0: np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    GGMLType.Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]),
    GGMLType.Q5_0: np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    GGMLType.Q5_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    GGMLType.Q8_0: np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
    GGMLType.Q2_K: np.dtype(
        [("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")]
    ),
    GGMLType.Q3_K: np.dtype(
        [("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")]
    ),
    GGMLType.Q4_K: np.dtype(
        [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]
    ),
    GGMLType.Q5_K: np.dtype(
        [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]
    ),
    GGMLType.Q6_K: np.dtype(
        [("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]
    ),
    GGMLType.MXFP4: np.dtype([("e", "u1"), ("qs", "u1", 16)]),
}

# Types that ggml has and we do not read: a file that uses one is sound, and the error says its name.
UNREAD_TYPES: dict[int, str] = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"},
    **{20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32"},
    **{27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4", 41: "Q1_0"},
}
