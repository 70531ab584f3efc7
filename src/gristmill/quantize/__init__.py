"""Quantization: fewer bits a weight, written as files that other tools read, with the cost measured."""

from gristmill.quantize.int8 import Int8Config, quantize_network, quantize_rows, run

__all__ = ["Int8Config", "quantize_network", "quantize_rows", "run"]
