"""Gristmill takes a language model through its whole life: raw text to a served, measured assistant."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Model": "gristmill.formats",
    "Tokenizer": "gristmill.tokenizer",
    "Engine": "gristmill.engine",
    "Request": "gristmill.lm",
    "SamplingParams": "gristmill.lm",
    "Recipe": "gristmill.recipe",
}
__all__ = ["Engine", "Model", "Recipe", "Request", "SamplingParams", "Tokenizer", "__version__"]

if TYPE_CHECKING:
    from gristmill.engine import Engine
    from gristmill.formats import Model
    from gristmill.lm import Request, SamplingParams
    from gristmill.recipe import Recipe
    from gristmill.tokenizer import Tokenizer


def __getattr__(name: str) -> Any:
    """Load the few public names on first use, so that `import gristmill` costs no torch."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'gristmill' has no attribute {name!r}")
