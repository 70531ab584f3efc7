"""`--dry-run`: the table of what a run would do and what it would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from gristmill.cli.console import out, show_json
from gristmill.recipe import Recipe
from gristmill.recipe.estimate import BASIS, Estimate, estimate, shortages
from gristmill.recipe.headline import amount, duration
from gristmill.recipe.runner import Judgement, plan

_STYLE = {"skip": "dim", "run": "", "resume": "", "depends": ""}
_WORDS = {"skip": "skip", "run": "run", "resume": "resume", "depends": "run"}


def show_plan(
    recipe: Recipe,
    out_dir: Path | None,
    from_stage: str | None,
    until: str | None,
    verify: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Print the plan, what it would take, and what this machine lacks for it. Changes nothing.

    verbose: the resolved recipe too; with as_json it is always a part.
    """
    configs = recipe.resolve()
    run_dir = recipe.directory(out_dir)
    judgements = plan(recipe, configs, run_dir, from_stage=from_stage, until=until, verify=verify)
    estimates = estimate(configs, run_dir)
    running = {
        j.stage: estimates[j.stage]
        for j in judgements
        if j.action != "skip" and j.stage in estimates
    }
    lacking = shortages(running, run_dir)
    if as_json:
        show_json(
            {
                "dir": str(run_dir),
                "stages": [_row(j, estimates.get(j.stage)) for j in judgements],
                "recipe": {s: config.model_dump(mode="json") for s, config in configs.items()},
                "estimates": BASIS,
                "does_not_fit": lacking,
            }
        )
        return
    out.print(recipe.title, style="bold", markup=False, soft_wrap=True)
    out.print(
        f"Reads {_sources(configs['data'])}; writes {run_dir}\n", markup=False, soft_wrap=True
    )
    out.print(_table(recipe, judgements, estimates))
    if running:
        out.print(f"\n{_summary(list(running.values()))}", soft_wrap=True)
    else:
        out.print("\nNothing to do: every stage is finished and unchanged.")
    if lacking:
        cure = "Choose a smaller --set size=…, or a machine that has it."
        out.print(f"\n{' '.join(lacking)} {cure}", style="yellow", markup=False, soft_wrap=True)
    if verbose:
        out.print(f"\n# {run_dir}/recipe.toml", style="dim", markup=False)
        out.print(recipe.to_toml(configs), markup=False, soft_wrap=True)
    else:
        out.print("--verbose shows every setting.", style="dim")


def _sources(data: Any) -> str:
    """What the data stage will read, in words."""
    installed = "the installed Python (standard library, packages)"
    given = [data.path] if data.path else data.sources
    return ", ".join(installed if source == "python" else source for source in given)


def _summary(running: list[Estimate]) -> str:
    memory = amount(max(one.memory_bytes or 0 for one in running), "bytes")
    disk = amount(sum(one.disk_bytes or 0 for one in running), "bytes")
    room = f"{memory} of memory, {disk} on disk"
    if all(one.fits for one in running):
        return f"About {duration(sum(one.seconds or 0 for one in running))}, {room}. {BASIS}"
    return f"About {room}; the time of what does not fit is not estimated. {BASIS}"


def _table(recipe: Recipe, judgements: list[Judgement], estimates: dict[str, Estimate]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    wide = out.width >= 110  # on a narrow terminal the reason matters more than the description
    table.add_column("stage", no_wrap=True)
    if wide:
        table.add_column("what it does", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column("why", overflow="fold")
    for name in ("time", "memory", "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for judgement in judgements:
        one = estimates.get(judgement.stage, Estimate())
        skipped = judgement.action == "skip"
        time = "" if skipped else "–" if one.seconds is None else duration(one.seconds)
        memory = "" if skipped or one.memory_bytes is None else amount(one.memory_bytes, "bytes")
        disk = "" if one.disk_bytes is None else amount(one.disk_bytes, "bytes")
        table.add_row(
            judgement.stage,
            *([recipe.line[judgement.stage].does] if wide else []),
            _WORDS[judgement.action],
            judgement.why,
            time,
            memory,
            disk,
            style=_STYLE[judgement.action],
        )
    return table


def _row(judgement: Judgement, one: Estimate | None) -> dict[str, Any]:
    one = one or Estimate()
    return {
        "stage": judgement.stage,
        "action": judgement.action,
        "why": judgement.why,
        "seconds": one.seconds,
        "memory_bytes": one.memory_bytes,
        "disk_bytes": one.disk_bytes,
    }
