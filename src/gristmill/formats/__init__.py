"""What lies on disk, read and written so that other tools agree: Hugging Face directories, GGUF, llama2.c."""

from gristmill.formats.convert import Conversion, convert
from gristmill.formats.describe import Description, describe
from gristmill.formats.families import FAMILIES
from gristmill.formats.hf import load_network, save_hf
from gristmill.formats.model import Model, load_config
from gristmill.formats.paths import name_of, newest_run, resolve

__all__ = [
    "FAMILIES",
    "Conversion",
    "Description",
    "Model",
    "convert",
    "describe",
    "load_config",
    "load_network",
    "name_of",
    "newest_run",
    "resolve",
    "save_hf",
]
