"""What lies on disk: Hugging Face directories, read and written so that other tools agree."""

from gristmill.formats.hf import load_config, read_tensors, save_hf
from gristmill.formats.model import Model
from gristmill.formats.paths import newest_run, resolve

__all__ = ["Model", "load_config", "newest_run", "read_tensors", "resolve", "save_hf"]
