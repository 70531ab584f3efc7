"""Quantization: fewer bits a weight, written as files that other tools read, with the cost measured."""

from typing import get_args

from gristmill.quantize.calibration import PYTHON_DOCS, Windows, read_windows
from gristmill.quantize.driver import Made, check, quantize
from gristmill.quantize.int8 import Int8Config, quantize_network, quantize_rows, run
from gristmill.quantize.settings import CALIBRATED, Format, QuantizeConfig

FORMATS: tuple[str, ...] = ("auto", *get_args(Format))

__all__ = [
    "CALIBRATED",
    "FORMATS",
    "PYTHON_DOCS",
    "Int8Config",
    "Made",
    "QuantizeConfig",
    "Windows",
    "check",
    "quantize",
    "quantize_network",
    "quantize_rows",
    "read_windows",
    "run",
]
