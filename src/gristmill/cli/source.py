"""What belongs to a MODEL besides its weights: the index of its run, and its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.cli.console import err
from gristmill.errors import RequestError
from gristmill.files import read_json

if TYPE_CHECKING:
    from gristmill.retrieval import Index

OF_RUN = "of-run"  # stands for "the index that MODEL's run.json names"


def open_index(model: str, which: str) -> Index:
    """The index at `which`, or for OF_RUN the run's own. Raises RequestError."""
    from gristmill.retrieval import Index

    if which != OF_RUN:
        path = Path(which)
        return Index.open(path / "index.sqlite" if path.is_dir() else path)
    path = run_index(model)
    if path is None:
        raise RequestError(
            f"{model} has no index of its own (no run.json that names one); "
            "give one with --index FILE, or use a run directory as MODEL"
        )
    return Index.open(path)


def run_index(model: str) -> Path | None:
    """Where the index of a run directory lies, or None when MODEL is no run or has none."""
    summary = _summary(model)
    name = summary.get("index")
    return Path(model).expanduser() / name if isinstance(name, str) else None


def for_raw_text(model: str) -> Path:
    """The model directory that continues plain text: of a run its base model, said on standard error.

    Tuning to chat is what makes a run's last model answer, and it costs that model plain text (docs/performance.md
    has numbers). Raises RequestError when there is no model.
    """
    from gristmill.formats import resolve

    tuned = resolve(model)
    base = Path(model).expanduser() / "pretrain" / "model"
    chosen, more = tuned, ""
    if base != tuned and _summary(model) and (base / "config.json").is_file():
        chosen = base
        more = f", the base model of the run; the one that is tuned to chat is {tuned}"
    err.print(f"model: {chosen}{more}", style="dim", markup=False, soft_wrap=True)
    return chosen


def model_name(model: str) -> str:
    """The recipe's name for a run, else the directory's."""
    name = _summary(model).get("recipe")
    return name if isinstance(name, str) else Path(model).resolve().name


def example_questions(model: str, count: int = 4) -> tuple[str, ...]:
    """Questions that the run's own evaluation asked; () for a model that is not a run."""
    file = Path(model).expanduser() / "evaluate" / "manifest.json"
    if not file.is_file():
        return ()
    samples = read_json(file).get("metrics", {}).get("samples", [])
    questions = [s["question"] for s in samples if isinstance(s.get("question"), str)]
    return tuple(dict.fromkeys(questions))[:count]


def _summary(model: str) -> dict[str, object]:
    file = Path(model).expanduser() / "run.json"
    if not file.is_file():
        return {}
    try:
        summary = read_json(file)
    except ValueError as error:
        raise RequestError(f"{file} is not a run's summary: {error}") from error
    return summary if isinstance(summary, dict) else {}
