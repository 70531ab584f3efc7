"""`gristmill doctor`: what is wrong with a training, and whether a layout computes what one process does."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.bar import Bar
from gristmill.cli.console import counted, out, show_json
from gristmill.cli.run import RecipeArgument, SetOption, parse_settings
from gristmill.errors import RequestError

if TYPE_CHECKING:
    from gristmill.train.doctor import Diagnosis
    from gristmill.train.parallel.prove import Compared
    from gristmill.train.pretrain import PretrainConfig

app = typer.Typer(
    no_args_is_help=True,
    help="Find what is wrong with a training, and prove a layout before it is paid for.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document.")]
_MARKS = {"good": "[green]ok[/green]", "look": "[yellow]look[/yellow]", "bad": "[red]bad[/red]"}
_LEAST_VOCABULARY = 512


@app.command("run")
def run(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A run, or its pretrain directory.", show_default=False),
    ],
    patience: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Where going back to the bad step takes longer, look at its tokens alone.",
        ),
    ] = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Find the first bad step of a pretraining, make it again, and say what went wrong: which layer, row, document,
    setting. A run that is well gets a short checklist. Nothing in the directory changes.

    Exit code 0 when it is healthy or explained; `--json` tells which.

    Examples:

    - `gristmill doctor run runs/pyhelp`
    - `gristmill doctor run runs/pyhelp --patience 60 --json`
    """
    from gristmill.train.doctor import diagnose

    stage_dir, config, inputs = _stage_of(directory)
    with Bar() as bar:
        bar.begin("going back to the bad step")
        found = diagnose(stage_dir, config, inputs, patience=patience, progress=bar.progress)
    if as_json:
        show_json(found.to_json())
    else:
        _show(found)


def _stage_of(directory: Path) -> tuple[Path, PretrainConfig, dict[str, Path]]:
    """The pretraining's directory, settings and inputs. Raises RequestError where there is none."""
    from gristmill.files import read_json
    from gristmill.recipe import Recipe
    from gristmill.recipe.line import LINE
    from gristmill.recipe.manifest import read_manifest, read_manifests
    from gristmill.train.pretrain import PretrainConfig

    if (directory / "pretrain").is_dir():
        run_dir, stage_dir = directory, directory / "pretrain"
    else:
        run_dir, stage_dir = directory.resolve().parent, directory
    made = read_manifest(run_dir, stage_dir.name)
    if made is not None and (run_dir / "recipe.toml").is_file():
        config = PretrainConfig.model_validate(made["config"])
        inputs = {name: run_dir / entry["path"] for name, entry in made["inputs"].items()}
    elif (run_dir / "recipe.toml").is_file() and stage_dir.is_dir():
        config = Recipe.load(run_dir).resolve()["pretrain"]
        known, inputs = read_manifests(run_dir), {}
        for name, (maker, output) in LINE["pretrain"].inputs.items():
            if maker not in known:
                raise RequestError(f"{run_dir} has no finished stage {maker}, which pretrain reads")
            inputs[name] = run_dir / known[maker]["outputs"][output]["path"]
    elif (stage_dir / "job.json").is_file():
        job = read_json(stage_dir / "job.json")
        config = PretrainConfig.model_validate(job["config"])
        inputs = {name: Path(path) for name, path in job["inputs"].items()}
    else:
        raise RequestError(
            f"{directory} is neither a run with a pretrain stage nor such a stage's directory. "
            "Runs are in runs/; the directory of one holds recipe.toml and pretrain/"
        )
    assert isinstance(config, PretrainConfig)
    if made is None and not (stage_dir / "metrics.jsonl").is_file():
        raise RequestError(f"{stage_dir} holds no step yet: nothing was trained there")
    return stage_dir, config, inputs


def _show(found: Diagnosis) -> None:
    def say(text: str, style: str = "") -> None:
        out.print(text, style=style or None, markup=False, soft_wrap=True)

    if found.step is not None:
        say(f"Step {found.step}: {found.cause}", "bold")
        say(found.sentence)
        say(found.cure)
        if found.seen:
            say("\nWhat was looked at", "bold")
            for line in found.seen:
                say(f"  {line}")
        for suspect in found.suspects[:3]:
            say(f"\nRow {suspect.row}, group {suspect.group}, token {suspect.start:,}", "bold")
            if suspect.documents:
                say(f"  documents: {', '.join(suspect.documents[:5])}")
            say(f"  {suspect.why}")
            say(f"  {suspect.text}")
        others = [row for row in found.incidents if row["step"] != found.step]
        if others:
            say(f"\n{counted(len(others), 'other incident')}", "bold")
            for row in others[:5]:
                say(f"  step {row['step']}: {row['what']} ({row['action']})")
        out.print()
    say("Healthy" if found.healthy else "Checklist", "bold")
    for check in found.checks:
        out.print(f"  {_MARKS[check.state]:<4} ", end="")
        say(f"{check.name}: {check.said}")


@app.command("parallel")
def parallel(
    recipe: RecipeArgument = "pyhelp",
    settings: SetOption = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps to compare.")] = 20,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="The recipe's own sizes, not a laptop's.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove that a layout computes what one process does: the same steps under both, side by side, in float32.

    Where they differ, the first step that does, what that means, and the parameters whose gradients are wrong.
    The network is made small and the text is made up, unless --full-size says otherwise. Exit code 0 when equal, 1
    when not.

    Examples:

    - `gristmill doctor parallel my.toml`
    - `gristmill doctor parallel pyhelp --set 'pretrain.layout={dp=2,tp=2}' --steps 10`
    """
    from gristmill.recipe import Recipe
    from gristmill.train.parallel import prove

    loaded = Recipe.load(recipe, parse_settings(settings or ()))
    configs = loaded.resolve()
    config: Any = configs["pretrain"]
    if config.layout.world == 1:
        raise RequestError(
            "the recipe's layout is one process, which needs no proof. Give one, such as "
            "--set 'pretrain.layout={dp=2,tp=2}'"
        )
    if full_size:
        vocab_size = int(getattr(configs["tokenizer"], "vocab_size", _LEAST_VOCABULARY))
    else:
        config = prove.shrunk(config)
        vocab_size = config.layout.tp * math.ceil(_LEAST_VOCABULARY / config.layout.tp)
    with tempfile.TemporaryDirectory() as scratch, Bar() as bar:
        bar.begin(f"proving {config.layout}")
        place = Path(scratch)
        inputs = _own_tokens(loaded.directory()) if full_size else None
        if inputs is None:
            size = max(20_000, 4 * config.batch_tokens)
            inputs = prove.made_up_corpus(place / "corpus", vocab_size, size)
            config = config.model_copy(update={"weights": {}})
        rows = prove.prove(config, inputs, place, steps, bar.progress)
        weights = prove.weights_differ(place)
        differs = prove.first_difference(rows)
        gradients = prove.gradients_differ(place)
        if differs:
            prove.prove(config, inputs, place / "first", differs.step, bar.progress)
            gradients = prove.gradients_differ(place / "first")
    worst, most = next(iter(weights)), next(iter(gradients.values()))
    limit = prove.NAMED_TOLERANCE
    equal = differs is None and weights[worst] <= limit and most <= limit
    told = {
        "layout": str(config.layout),
        "processes": config.layout.world,
        "equal": equal,
        "tolerance": prove.TOLERANCE,
        "steps": [asdict(row) for row in rows],
        "first_difference": differs.step if differs else None,
        "meaning": prove.meaning(differs) if differs else "",
        "gradients": dict(list(gradients.items())[:10]),
        "checkpoint": {"parameter": worst, "difference": weights[worst]},
    }
    if as_json:
        show_json(told)
    else:
        _show_proof(rows, told)
    if not equal:
        raise typer.Exit(1)


def _own_tokens(run_dir: Path) -> dict[str, Path] | None:
    """What the recipe's run has made for pretraining, None where it has not."""
    from gristmill.recipe.manifest import read_manifests

    known = read_manifests(run_dir) if run_dir.is_dir() else {}
    if "tokens" not in known or "tokenizer" not in known:
        return None
    return {
        name: run_dir / known[name]["outputs"][name]["path"] for name in ("tokens", "tokenizer")
    }


def _show_proof(rows: list[Compared], told: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"One process and {told['processes']} ({told['layout']})")
    for name in ("step", "loss", "difference", "gradient norm", "difference"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row.step),
            f"{row.loss:.6f}",
            f"{row.loss_difference:+.1e}",
            f"{row.grad_norm:.6f}",
            f"{row.grad_norm_difference:+.1e}",
            style="" if row.equal else "red",
        )
    out.print(table)
    held = told["checkpoint"]
    if told["first_difference"] is None:
        out.print(f"Every step is equal within {told['tolerance']:g}.")
        if not told["equal"]:
            said = "Single parameters or their gradients are not, and losses do not show it (yet)."
            out.print(said, style="bold red", soft_wrap=True)
    else:
        out.print(
            f"Step {told['first_difference']} is the first that differs by more than "
            f"{told['tolerance']:g}. That is {told['meaning']}.",
            style="bold red",
            soft_wrap=True,
        )
    out.print("Gradients that differ most, relative to their norm:")
    for name, difference in list(told["gradients"].items())[: 2 if told["equal"] else 5]:
        out.print(f"  {difference:.1e}  {name}", markup=False, soft_wrap=True)
    out.print(
        f"The layout's checkpoint, loaded on one process: weights differ by up to {held['difference']:.1e} "
        f"({held['parameter']}).",
        soft_wrap=True,
        markup=False,
    )
