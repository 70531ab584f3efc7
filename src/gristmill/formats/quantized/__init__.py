"""Quantized layers in safetensors directories: GPTQ, AWQ and compressed-tensors, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gristmill.errors import RequestError
from gristmill.files import read_object
from gristmill.formats.quantized import awq, compressed, gptq
from gristmill.formats.quantized.layers import layer_of, quantized_layers
from gristmill.formats.quantized.reading import fill_quantized
from gristmill.formats.quantized.scheme import Int8Rows, Quantization
from gristmill.formats.quantized.writing import planned, written

__all__ = [
    "Int8Rows",
    "fill_quantized",
    "layer_of",
    "planned",
    "quantized_layers",
    "read_quantization",
    "written",
]

_READERS = {"gptq": gptq.read, "awq": awq.read, "compressed-tensors": compressed.read}
_OLDER = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def read_quantization(hf: dict[str, Any], directory: Path) -> Quantization | None:
    """How a directory with this config.json is quantized; None where it is not.

    Older writers kept it in a file of its own. Raises RequestError for what is not read, by name.
    """
    file, found = directory / "config.json", hf.get("quantization_config")
    if found is None:
        for name, method in _OLDER.items():
            if (directory / name).is_file():
                file = directory / name
                found = {"quant_method": method, **read_object(file)}
                break
        else:
            return None
    if not isinstance(found, dict):
        raise RequestError(f"{file}: quantization_config must be an object, not {found!r}")
    method = found.get("quant_method")
    read = _READERS.get(str(method))
    if read is None:
        raise RequestError(
            f"{file}: weights quantized by {method!r} are not read; read are {', '.join(_READERS)}"
        )
    return read(found, file)
