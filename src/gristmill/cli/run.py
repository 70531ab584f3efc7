"""`gristmill run`: a recipe from its first stage to its last, or a table of what that would take."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.console import err, out, show_json
from gristmill.errors import RequestError, WorkError

if TYPE_CHECKING:
    from gristmill.recipe import Recipe, RunResult

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, a run directory, or a shipped recipe: pyhelp, my-docs.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", help="Where the run goes. Default: runs/NAME."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting: size=tiny, seed=1, sft.epochs=3, data.path=DIR. May be repeated.",
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="STAGE",
        help="Run STAGE and what follows from it again, though unchanged.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what would run, and its cost; change nothing.")
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", help="With --dry-run: every setting too, as the TOML of a recipe."),
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Check the sha256 of every finished output, not only of those up to 64 MiB.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output; progress on stderr.")
]


def run(
    recipe: RecipeArgument = "pyhelp",
    out_dir: OutOption = None,
    settings: SetOption = None,
    from_stage: FromOption = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="STAGE", help="Run only STAGE and what it needs."),
    ] = None,
    dry_run: DryRunOption = False,
    verbose: VerboseOption = False,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe: from raw text to a served, measured assistant.

    What is finished and unchanged is not run again, and an interrupted run goes on where it stopped:
    give the same command again.

    Examples:

        gristmill run pyhelp --dry-run

        gristmill run pyhelp --set size=tiny

        gristmill run my-docs --set data.path=~/notes

        gristmill run pyhelp --set data.sources='["~/notes"]' --out runs/notes

        gristmill run pyhelp --set pretrain.base=path/to/model --from pretrain
    """
    start(recipe, out_dir, settings, from_stage, until, dry_run, verbose, verify, as_json)


def start(
    source: str,
    out_dir: Path | None,
    settings: Sequence[str] | None,
    from_stage: str | None,
    until: str | None,
    dry_run: bool,
    verbose: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Run, or plan, and show the result: what `run` and the verbs of single stages share."""
    from gristmill.recipe import Recipe
    from gristmill.recipe.view import Live, Plain

    recipe = Recipe.load(source, parse_settings(settings or ()))
    if verbose and not dry_run:
        raise RequestError("--verbose shows the settings of a plan; add --dry-run")
    if dry_run:
        from gristmill.cli.plan import show_plan

        show_plan(recipe, out_dir, from_stage, until, verify, verbose, as_json)
        return
    if int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or "1") > 1:
        from gristmill.recipe import joined

        joined.check(recipe, out_dir, until)
        if not joined.is_first():
            joined.assist(recipe, out_dir)
            return
    view = Live(err) if err.is_terminal else Plain(err)
    try:
        result = recipe.run(out_dir, from_stage=from_stage, until=until, verify=verify, view=view)
    except KeyboardInterrupt:
        err.print(
            f"\nInterrupted; nothing is lost. To go on: {_again()}", soft_wrap=True, markup=False
        )
        raise SystemExit(130) from None
    except WorkError as error:
        raise WorkError(f"{error}\nWhat is finished is kept. To go on: {_again()}") from error
    if as_json:
        show_json(result.to_json())
    else:
        _show_result(recipe, result)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The `--set KEY=VALUE` options as a table of dotted keys."""
    from gristmill.recipe.toml import parse_value

    overrides = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise RequestError(
                f'--set {setting}: write KEY=VALUE, as in "size=tiny" or "sft.epochs=3"'
            )
        overrides[key] = parse_value(value.strip())
    return overrides


def _again() -> str:
    """The command line that resumes: the same, without the option that starts stages over."""
    arguments, skip = [], False
    for argument in sys.argv[1:]:
        if skip or argument == "--from" or argument.startswith("--from="):
            skip = argument == "--from"
            continue
        arguments.append(argument)
    return shlex.join(["gristmill", *arguments])


def _show_result(recipe: Recipe, result: RunResult) -> None:
    from gristmill.recipe.headline import amount, duration

    seconds = sum(result.manifests[stage]["seconds"] for stage in result.ran)
    memory = max((result.manifests[s]["peak_memory_bytes"] for s in result.ran), default=0)
    if result.ran:
        said = (
            f"{len(result.ran)} stages in {duration(seconds)}, {amount(memory, 'bytes')} of memory"
        )
    else:
        said = "nothing to do: every stage is finished and unchanged"
    kept = f"; {len(result.skipped)} unchanged" if result.ran and result.skipped else ""
    lines = ["", f"Done: {said}{kept}.", f"The run is in {result.dir}"]
    if result.model:
        lines += ["", "Next:"]
        commands = [
            (f"gristmill chat {result.dir}", "talk with it"),
            (f"gristmill serve {result.dir}", "a web app, and the APIs of OpenAI and Anthropic"),
            (f'gristmill inspect {result.dir} "def main("', "what it expects next"),
        ]
        if (result.dir / "index").is_dir():
            commands[0] = (
                f"gristmill chat {result.dir} --rag",
                "talk with it; answers with sources",
            )
        if result.report:
            commands.append((f"gristmill report {result.dir} --open", "the page of the run"))
        width = max(len(command) for command, _ in commands)
        lines += [f"  {command:<{width}}  {what}" for command, what in commands]
    if result.ran:
        from gristmill.kernels import describe

        lines += [f"\nNote: {kernel}" for kernel in describe() if kernel.uses == "torch"]
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
