"""One of the processes that torchrun or SLURM started on a recipe: the first runs it, the others help it pretrain."""

from __future__ import annotations

import os
from pathlib import Path

from gristmill.errors import RequestError
from gristmill.recipe.recipe import Recipe
from gristmill.recipe.runner import plan

STAGE = "pretrain"


def is_first() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def check(recipe: Recipe, out_dir: Path | None, until: str | None) -> None:
    """Raises RequestError unless pretraining is all that is left to do: other stages are for one process."""
    if until != STAGE:
        raise RequestError(
            f"several processes were started, and they share the work of one stage: `gristmill {STAGE} RECIPE`"
        )
    run_dir = recipe.directory(out_dir)
    waiting = [
        j.stage for j in plan(recipe, recipe.resolve(), run_dir, until=STAGE) if j.action != "skip"
    ]
    before = [stage for stage in waiting if stage != STAGE]
    if before:
        raise RequestError(
            f"{run_dir} lacks {', '.join(before)}, which one process makes: first "
            f"`gristmill run RECIPE --until {before[-1]}`, without torchrun"
        )


def assist(recipe: Recipe, out_dir: Path | None) -> None:
    """What all but the first do."""
    from gristmill.train import pretrain

    run_dir, configs = recipe.directory(out_dir), recipe.resolve()
    judged = plan(recipe, configs, run_dir, until=STAGE)[-1]
    config = configs[STAGE]
    assert isinstance(config, pretrain.PretrainConfig)
    if judged.action != "skip":
        inputs = {name: run_dir / entry["path"] for name, entry in judged.inputs.items()}
        pretrain.run(config, inputs, run_dir / STAGE)
