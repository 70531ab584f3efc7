from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gristmill.recipe import Recipe

sys.path.append(str(Path(__file__).parent))  # small_line and example_run, also for child processes

from small_line import LINE, dial

TEXT = """\
name = "words"
title = "Words"
seed = 3
size = "small"

[text]
word = "grist"

[slow]
steps = 12
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "words.toml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def load(recipe_file: Path) -> Callable[..., Recipe]:
    """Load the small recipe, with another text or overrides."""

    def loaded(text: str | None = None, overrides: dict[str, Any] | None = None) -> Recipe:
        if text is not None:
            recipe_file.write_text(text)
        return Recipe.load(recipe_file, overrides, line=LINE, dial=dial)

    return loaded
