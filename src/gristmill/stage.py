"""What a stage is: `run(config, inputs, out_dir, progress=quiet) -> Result`, a pure function of its first two.

CLI, recipe, server, report and tests all call the same function. `inputs` maps artifact names to paths of
earlier stages; `out_dir` belongs to the stage, which starts over or resumes from whatever it finds there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict


class StageConfig(BaseModel):
    """Base of every stage's typed settings: frozen, and an unknown key is an error.

    HOW: settings of how the work is done (on how many processes, say) and not of what comes out: another value does
    not make finished work stale, and what was interrupted goes on under it.
    """

    HOW: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(extra="forbid", frozen=True)

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what comes out, as JSON."""
        return self.model_dump(mode="json", exclude=set(self.HOW))


@dataclass(frozen=True)
class Result:
    """What a stage made.

    outputs: artifact name -> path under the stage's directory.
    metrics: JSON-able numbers and strings, a function of config and inputs alone (no clock, no host).
    """

    outputs: dict[str, Path]
    metrics: dict[str, Any] = field(default_factory=dict)


class Progress(Protocol):
    """Told now and then how far the work is; `values` are shown beside the bar (loss, tokens/s, …)."""

    def __call__(self, done: float, total: float, unit: str = "", **values: Any) -> None: ...


def quiet(done: float, total: float, unit: str = "", **values: Any) -> None:
    """The progress listener that shows nothing."""
