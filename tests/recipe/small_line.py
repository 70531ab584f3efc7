"""A small real line of stages that write files, so that the runner is tested without training anything.

text ──▶ count ──▶ total          slow: text ──▶ slow (many steps, resumes from its own file)
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from gristmill.errors import RequestError
from gristmill.files import hash_path, read_json, write_json, write_text
from gristmill.recipe.line import Node
from gristmill.stage import Progress, Result, StageConfig, quiet


class Inner(StageConfig):
    weight: float = 1.0


class TextConfig(StageConfig):
    words: int = Field(5, ge=1)
    word: str = "mill"
    language: Literal["en", "de"] = "en"
    folder: str = ""
    inner: Inner = Inner()
    seed: int = 0


class CountConfig(StageConfig):
    step: int = 1
    names: tuple[str, ...] = ("a",)


class TotalConfig(StageConfig):
    factor: float = 2.0
    label: str = ""


class SlowConfig(StageConfig):
    steps: int = 40
    pause: float = 0.0


def text(
    config: TextConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    files = sorted(Path(config.folder).iterdir()) if config.folder else []
    words = [config.word] * config.words + [file.read_text() for file in files]
    write_text(out_dir / "made" / "text.txt", " ".join(words))
    progress(1, 1, "words")
    return Result({"text": out_dir / "made"}, {"words": len(words)})


def source_fingerprint(config: TextConfig) -> str:
    if not config.folder:
        return ""
    if not Path(config.folder).is_dir():
        raise RequestError(f"folder: {config.folder} does not exist")
    return hash_path(Path(config.folder))


def count(
    config: CountConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    number = config.step * len((inputs["text"] / "text.txt").read_text().split())
    write_json(out_dir / "count.json", number)
    return Result({"count": out_dir / "count.json"}, {"count": number})


def total(
    config: TotalConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    if config.label == "refused":
        write_text(out_dir / "begun.txt", "")
        raise RequestError("total.label must not be refused")
    value = config.factor * read_json(inputs["count"])
    write_json(out_dir / "total.json", value)
    write_text(out_dir / "model" / "weights.txt", str(value))
    return Result({"total": out_dir / "total.json", "model": out_dir / "model"}, {"total": value})


def slow(
    config: SlowConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """Does one step at a time and keeps what is done, like training with checkpoints."""
    kept = out_dir / "steps.json"
    done: list[int] = read_json(kept) if kept.exists() else []
    write_json(out_dir / "resumed.json", len(done))
    for step in range(len(done), config.steps):
        time.sleep(config.pause)
        done.append(step * step)
        write_json(kept, done)
        progress(step + 1, config.steps, "steps", value=step * step)
    write_json(out_dir / "slow.json", done)
    return Result({"slow": out_dir / "slow.json"}, {"sum": sum(done)})


def broken(config: CountConfig, inputs: Any, out_dir: Path, progress: Progress = quiet) -> Result:
    raise ZeroDivisionError("one by nothing")


def hungry(config: CountConfig, inputs: Any, out_dir: Path, progress: Progress = quiet) -> Result:
    import torch

    torch.empty(10**15)
    raise AssertionError("this machine has four petabytes of memory")


def _module(name: str, run: Any, **more: Any) -> str:
    """Give a stage function a module of its own, as every stage of the real line has."""
    import sys

    module = ModuleType(f"small_line_{name}")
    for key, value in {"run": run, **more}.items():
        setattr(module, key, value)
    sys.modules[module.__name__] = module
    return module.__name__


LINE = {
    "text": Node(
        _module("text", text, TextConfig=TextConfig, source_fingerprint=source_fingerprint),
        "TextConfig",
        "write some words",
        paths={"folder": ()},
    ),
    "count": Node(
        _module("count", count, CountConfig=CountConfig),
        "CountConfig",
        "count them",
        inputs={"text": ("text", "text")},
    ),
    "total": Node(
        _module("total", total, TotalConfig=TotalConfig),
        "TotalConfig",
        "multiply the count",
        follows={"label": ("text", "word")},
        inputs={"count": ("count", "count")},
        model=True,
        publish={"total": "total.json"},
    ),
    "slow": Node(
        _module("slow", slow, SlowConfig=SlowConfig),
        "SlowConfig",
        "take its time",
        inputs={"text": ("text", "text")},
    ),
}
BROKEN = {
    **LINE,
    "broken": Node(_module("broken", broken, CountConfig=CountConfig), "CountConfig", "fail"),
}
HUNGRY = {
    **LINE,
    "hungry": Node(_module("hungry", hungry, CountConfig=CountConfig), "CountConfig", "take all"),
}


def dial(size: str) -> dict[str, dict[str, Any]]:
    if size not in ("small", "large"):
        raise RequestError(f'there is no size "{size}". Sizes: small, large.')
    return {"text": {"words": {"small": 5, "large": 50}[size], "inner": {"weight": 3.0}}}
