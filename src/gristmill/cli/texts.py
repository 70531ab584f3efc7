"""Where calibration and held-out text comes from when no file is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.cli.console import err

if TYPE_CHECKING:
    from gristmill.quantize import Windows
    from gristmill.tokenizer import Tokenizer


class Texts:
    """Where windows come from: a file that is named, the model's run, or Python's documentation, which is said."""

    def __init__(self, model: str, length: int, seed: int) -> None:
        self._model, self._length, self._seed = model, length, seed
        self._tokenizer: Tokenizer | None = None

    def read(self, file: Path | None, split: str, count: int, fewer: bool = False) -> Windows:
        from gristmill.quantize import PYTHON_DOCS, read_windows

        source = file or run_shards(self._model) or PYTHON_DOCS
        if source == PYTHON_DOCS:
            option = "--calibration" if split == "train" else "--held-out"
            err.print(
                f"no {option} FILE: Python's own documentation is used, which may not be what your model will see",
                style="yellow",
                soft_wrap=True,
            )
        return read_windows(
            source,
            self.tokenizer,
            count=count,
            length=self._length,
            seed=self._seed,
            split=split,
            fewer=fewer,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(self._model)
        return self._tokenizer


def tokenizer_of(model: str) -> Tokenizer:
    """A model's tokenizer; of a directory without its weights."""
    from gristmill.formats import Model, resolve
    from gristmill.tokenizer import Tokenizer

    place = resolve(model)
    return Model.load(place, dtype="auto").tokenizer if place.is_file() else Tokenizer.load(place)


def run_shards(model: str) -> Path | None:
    """The token shards of a run directory; None for a model that is no run, or whose run keeps none."""
    from gristmill.files import read_object

    run = Path(model).expanduser()
    manifest = read_object(run / "tokens" / "manifest.json")
    place = manifest.get("outputs", {}).get("tokens", {}).get("path")
    found = run / place if isinstance(place, str) else None
    return found if found is not None and (found / "manifest.json").is_file() else None
