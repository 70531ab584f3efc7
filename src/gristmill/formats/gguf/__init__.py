"""GGUF, llama.cpp's file format: bytes, metadata and tensors. What they mean for a model is not known here.

Reads versions 2 and 3 and F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K and MXFP4; writes version 3
and all of these but Q2_K, Q3_K and MXFP4 (whose blocks can still be copied).
"""

from gristmill.formats.gguf.blocks import WRITABLE, dequantize, is_finite, quantize
from gristmill.formats.gguf.mixtures import (
    FILE_TYPES,
    QUANTIZATION_VERSION,
    mixture_name,
    tensor_types,
)
from gristmill.formats.gguf.read import GGUFFile, TensorInfo
from gristmill.formats.gguf.types import GGMLType
from gristmill.formats.gguf.values import LazyArray, ValueType
from gristmill.formats.gguf.write import write_gguf

__all__ = [
    "FILE_TYPES",
    "QUANTIZATION_VERSION",
    "WRITABLE",
    "GGMLType",
    "GGUFFile",
    "LazyArray",
    "TensorInfo",
    "ValueType",
    "dequantize",
    "is_finite",
    "mixture_name",
    "quantize",
    "tensor_types",
    "write_gguf",
]
