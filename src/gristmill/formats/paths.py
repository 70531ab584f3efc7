"""What a person means by MODEL: a directory with a model, a file that holds one, or a run that made one."""

from __future__ import annotations

from pathlib import Path

from gristmill.errors import RequestError, nearest
from gristmill.files import read_json

_ELSEWHERE = ("openai:", "anthropic:", "google:", "http://", "https://")


def name_of(place: Path) -> str:
    """What a model is called by where it lies: a file's name without its kind. A directory has none: "Llama-3.1-8B"."""
    return place.name if place.is_dir() else place.stem


def resolve(path: str | Path) -> Path:
    """The directory that holds config.json and weights, or the file that holds all.

    `path` is that directory, a run directory (its run.json names the model), a stage's directory with `model/`
    in it, a .gguf file, or a llama2.c checkpoint (.bin). Raises RequestError that says what was found instead.
    """
    given, path = str(path), Path(path).expanduser()
    if (path / "run.json").is_file():
        return _of_run(path)
    for candidate in (path, path / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if given.startswith(_ELSEWHERE):
        raise RequestError(f"{given}: this command needs a model on disk, not one behind an API")
    if path.is_file():
        if path.suffix in (".gguf", ".bin"):
            return path
        raise RequestError(
            f"{path} is not a model: give a directory with config.json, a .gguf file, or a llama2.c .bin file"
        )
    if not path.exists():
        raise RequestError(f"there is no model at {path}.{_suggest(path)}")
    if (path / "recipe.toml").is_file():
        raise RequestError(
            f"the run in {path} has no model yet; continue it with: gristmill run "
            f"{path / 'recipe.toml'} --out {path}"
        )
    raise RequestError(
        f"{path} is not a model directory: it holds neither config.json nor run.json"
    )


def newest_run(root: Path = Path("runs")) -> Path:
    """The run under `root` that finished last. Raises RequestError when there is none."""
    found = sorted(root.glob("*/run.json"), key=lambda file: (file.stat().st_mtime, file.parent))
    if not found:
        raise RequestError(
            f"no MODEL was given and there is no finished run under {root}/; name a model "
            "directory, or make one with: gristmill run"
        )
    return found[-1].parent


def _of_run(run: Path) -> Path:
    try:
        name = read_json(run / "run.json").get("model")
    except (ValueError, AttributeError) as error:
        raise RequestError(f"{run / 'run.json'} is not a run's summary: {error}") from error
    if not isinstance(name, str):
        raise RequestError(f"{run / 'run.json'} names no model: the run stopped before it made one")
    if not (run / name / "config.json").is_file():
        raise RequestError(f"{run / 'run.json'} names {name} as the model, which is not there")
    return run / name


def _suggest(path: Path) -> str:
    if (Path("runs") / path / "run.json").is_file():
        return f' Did you mean "{Path("runs") / path}"?'
    if path.parent.is_dir():
        siblings = [str(path.parent / p.name) for p in path.parent.iterdir() if p.is_dir()]
        return nearest(str(path), siblings)
    return ""
