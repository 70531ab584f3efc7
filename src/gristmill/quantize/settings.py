"""What a person chooses when a model is quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from gristmill.stage import StageConfig

Name = Literal["gptq", "awq", "rtn", "smoothquant", "int8", "gguf"]
Format = Literal["compressed-tensors", "gptq", "awq"]
Say = Callable[[str], None]

CALIBRATED = ("gptq", "awq", "smoothquant")
"""Methods that cannot work without text; gguf can use it."""


class QuantizeConfig(StageConfig):
    """method: how. bits, group, symmetric: the grid of gptq, awq and rtn; group "auto" is the largest of 128, 64, 32
    that divides every layer's inputs, else "channel", one scale a row; symmetric "auto": not for awq. format: of the
    directory; "auto" is "awq" for what awq makes, where that can hold it, else "compressed-tensors". damping, mse: of
    gptq. type: of a .gguf file. importance: weigh its rounding by the calibration text. target_bytes: of a .gguf
    file: the best types that fit, in place of `type`."""

    method: Name
    bits: Literal[4, 8] = 4
    group: int | Literal["auto", "channel"] = "auto"
    symmetric: bool | Literal["auto"] = "auto"
    format: Format | Literal["auto"] = "auto"
    damping: float = Field(0.01, gt=0, le=1)
    mse: bool = False
    type: str = "Q4_K_M"
    importance: bool = False
    target_bytes: int | None = Field(None, gt=0)
