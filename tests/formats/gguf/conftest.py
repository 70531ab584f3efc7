"""llama.cpp's own quantizer, reader and dequantizer, called inside the xllamacpp wheel by their C names."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gristmill.formats.gguf import GGMLType


@pytest.fixture(scope="session")
def llama_cpp() -> ctypes.CDLL:
    import xllamacpp

    (library,) = Path(xllamacpp.__file__).parent.glob("*.so")
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def llama_cpp_quantize(llama_cpp) -> Callable[..., np.ndarray]:
    """float32 [rows, columns], type -> uint8 [rows, bytes]; importance float32 [columns], or none."""
    function = llama_cpp.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3
    function.argtypes += [ctypes.c_void_p]

    def quantize(x: np.ndarray, type: GGMLType, importance: np.ndarray | None = None) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
        out = np.empty((x.shape[0], type.nbytes(x.shape[1])), np.uint8)
        wrote = function(
            int(type),
            x.ctypes.data,
            out.ctypes.data,
            0,
            *x.shape,
            None if weights is None else weights.ctypes.data,
        )
        assert wrote == out.nbytes
        return out

    return quantize
