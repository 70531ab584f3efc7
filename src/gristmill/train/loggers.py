"""Where else the rows of a run go, for those who watch it there: TensorBoard, Weights & Biases, Trackio.

None of the packages is ours to require. A run that resumes goes on in the same place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from gristmill.errors import RequestError
from gristmill.files import hash_json

LogTo = Literal["tensorboard", "wandb", "trackio"]
_PROJECT = "gristmill"


class Logger(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check(names: Sequence[LogTo]) -> None:
    """Raises RequestError where a package is missing."""
    for name in names:
        if find_spec(name) is None:
            raise RequestError(
                f'pretrain.log_to = ["{name}"] needs the package {name}, which is not installed: '
                f"pip install {name}"
            )


def open_loggers(
    names: Sequence[LogTo], out_dir: Path, step: int, config: Mapping[str, Any]
) -> list[Logger]:
    """Loggers of a run that stands at `step`. config: the run's settings, shown beside it."""
    check(names)
    kinds = {"tensorboard": _TensorBoard, "wandb": _Hosted, "trackio": _Hosted}
    return [kinds[name](name, out_dir, step, config) for name in names]


class _TensorBoard:
    def __init__(self, name: str, out_dir: Path, step: int, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an interrupted run wrote beyond its checkpoint is hidden.
        self._writer = SummaryWriter(str(out_dir / name), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Hosted:
    """W&B and Trackio, which have the same interface."""

    def __init__(self, name: str, out_dir: Path, step: int, config: Mapping[str, Any]) -> None:
        module = import_module(name)
        where = out_dir.resolve()
        # The same directory is the same run. Two of them must not share a name, so it ends in a hash of the path.
        run = f"{where.parent.name}-{where.name}-{hash_json(str(where))[:8]}"
        more: dict[str, Any] = {"id": run, "dir": str(out_dir)} if name == "wandb" else {}
        self._run = module.init(
            project=_PROJECT, name=run, config=dict(config), resume="allow", **more
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
