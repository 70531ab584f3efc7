"""Recipes: a TOML file becomes a run that can be stopped, resumed, repeated and traced."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "LINE": "gristmill.recipe.line",
    "Line": "gristmill.recipe.line",
    "Node": "gristmill.recipe.line",
    "Recipe": "gristmill.recipe.recipe",
    "RunResult": "gristmill.recipe.runner",
    "lineage": "gristmill.recipe.manifest",
}
__all__ = ["LINE", "Line", "Node", "Recipe", "RunResult", "lineage"]

if TYPE_CHECKING:
    from gristmill.recipe.line import LINE, Line, Node
    from gristmill.recipe.manifest import lineage
    from gristmill.recipe.recipe import Recipe
    from gristmill.recipe.runner import RunResult


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'gristmill.recipe' has no attribute {name!r}")
