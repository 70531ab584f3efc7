"""`gristmill scaling`: train a ladder, fit a law to it, predict a larger run, find the best use of a budget."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli import scaling_view as view
from gristmill.cli.bar import Bar
from gristmill.cli.console import err, show_json
from gristmill.errors import RequestError, nearest

if TYPE_CHECKING:
    from gristmill.scaling.approaches import Growth
    from gristmill.scaling.fit import Fit
    from gristmill.scaling.predict import HeldOut, Saved
    from gristmill.scaling.runs import Runs
    from gristmill.train.pretrain import PretrainConfig

app = typer.Typer(
    no_args_is_help=True,
    help="Train small models by a plan, fit a law to them, and predict larger ones with an interval.",
)

FIT = "fit.json"
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e\+?[0-9]+)?)\s*([KMBGT]?)", re.IGNORECASE)
_SHARE = 0.1  # of the run's own FLOPs, that its ladder takes where nothing is said

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document.")]
_FitArgument = Annotated[
    str,
    typer.Argument(
        metavar="FIT",
        help="A fitted sweep's directory, a fit.json, or published constants: besiroglu, hoffmann, hoffmann-tex.",
        show_default=False,
    ),
]


@app.command("sweep")
def sweep(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run with its tokens made (`gristmill run … --until tokens`); it may be trained or not.",
            show_default=False,
        ),
    ],
    target: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Where the sweep goes.")
    ],
    flops: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="To train for in all (6ND), such as 2e13.",
            show_default="a tenth of RUN's own",
        ),
    ] = None,
    budgets: Annotated[
        int, typer.Option(min=1, metavar="N", help="IsoFLOP profiles, over two decades.")
    ] = 4,
    sizes: Annotated[int, typer.Option(min=1, metavar="N", help="Of each profile.")] = 5,
    rates: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Factors on the learning rates, tried at a size of each profile too, such as 0.5,2.",
        ),
    ] = "",
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="Trainings at once.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the ladder; train nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Plan a ladder of small models of RUN's shape within a budget, and train it.

    At each of several budgets several sizes are trained to the end of their own schedule, on RUN's tokens with its
    settings. results.jsonl has a line for each that is done. A sweep that was killed goes on where it was when the same
    command is given again.

    Examples:

    - `gristmill scaling sweep runs/pyhelp -o sweep --dry-run`
    - `gristmill scaling sweep runs/pyhelp -o sweep --flops 2e13 --processes 2`
    """
    from gristmill.scaling import plan_ladder, train_ladder

    config, inputs, vocab_size, unique = _run(run)
    budget = _count(flops, "--flops") if flops else _SHARE * _flops_of(config, vocab_size)
    factors = [_factor(part) for part in rates.split(",") if part.strip()]
    ladder = plan_ladder(
        config, vocab_size, unique, budget, budgets=budgets, sizes=sizes, rates=factors
    )
    for warning in ladder.warnings:
        err.print(warning, style="yellow", markup=False, soft_wrap=True)
    shown: dict[str, Any] = {
        "flops": ladder.flops,
        "rungs": [
            {
                "name": r.name,
                "params": r.params,
                "total_params": r.total,
                "tokens": r.tokens,
                "flops": r.flops,
                "exact_flops": r.exact,
                "layers": r.config.num_layers,
                "width": r.config.hidden_size,
                "lr_factor": r.lr_factor,
            }
            for r in ladder.rungs
        ],
        "warnings": list(ladder.warnings),
    }
    rows: list[dict[str, Any]] = []
    if not dry_run:
        with Bar() as bar:
            bar.begin("sweep")
            rows = train_ladder(ladder, inputs, target, processes=processes, progress=bar.progress)
        shown |= {"results": rows, "target": str(target)}
    if as_json:
        show_json(shown)
        return
    view.show_ladder(ladder, {row["name"]: row["loss"] for row in rows})
    if not dry_run:
        view.say(f"Fit a law: gristmill scaling fit {target}")


@app.command("fit")
def fit(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS",
            help="A sweep's directory, or .jsonl or .csv with params, tokens (or flops) and loss.",
            show_default=False,
        ),
    ],
    exponents: Annotated[
        str | None,
        typer.Option(
            metavar="ALPHA,BETA",
            help="Given instead of fitted, where runs are few.",
            show_default=False,
        ),
    ] = None,
    below: Annotated[
        float | None,
        typer.Option(
            metavar="LOSS", help="Leave runs out that did not get below.", show_default=False
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, metavar="N", help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    target: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE", help="Where the fit goes.", show_default="fit.json there"
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit L = E + A/N^alpha + B/D^beta to finished runs, with intervals, residuals, and a test on the largest.

    Huber's loss on ln L from hundreds of starts; intervals from runs drawn again; the largest runs foreseen from the
    others. Beside it the best size by approaches 1 (envelope) and 2 (IsoFLOP parabolas).

    Examples:

    - `gristmill scaling fit sweep --html sweep/fit.html`
    - `gristmill scaling fit results.csv -o fit.json --exponents 0.35,0.37`
    """
    from gristmill.scaling import fit_chinchilla, read_runs
    from gristmill.scaling.predict import save, write

    given = _exponents(exponents)
    file = (
        (results / FIT if results.is_dir() else results.with_name(FIT))
        if target is None
        else target
    )
    everything = read_runs(results)
    runs = everything.usual
    if below is not None:
        runs = runs.only(runs.loss < below)
    if not len(runs):
        raise RequestError(f"{results} has no run at the usual learning rate below that loss")
    with err.status("fitting"):
        found = fit_chinchilla(runs, exponents=given, samples=samples, seed=seed)
        growths, held_out, warnings = _checks(found, runs, given, samples, seed)
    saved = save(found, results)
    write(saved, file)
    rates = _rates(everything, warnings)
    if html is not None:
        _write_page(html, found, growths, held_out, warnings, str(results))
    if as_json:
        show_json(view.fit_json(found, growths, held_out, warnings, rates, file, html))
        return
    view.show_fit(found, growths, held_out, rates)
    for warning in warnings:
        err.print(warning, style="yellow", markup=False, soft_wrap=True)
    view.say(f"The fit is {file}." + (f" The page is {html}." if html else ""))


@app.command("predict")
def predict(
    which: _FitArgument,
    params: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Parameters, counted as the fit's runs.", show_default=False
        ),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="D", help="To train on.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Predict this run's pretraining instead.", show_default=False
        ),
    ] = None,
    register: Annotated[
        bool,
        typer.Option("--register", help="Write RUN/prediction.json, before RUN trains."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the loss of a run, in nats a token, with an interval.

    Examples:

    - `gristmill scaling predict sweep --params 15M --tokens 300M`
    - `gristmill scaling predict sweep --run runs/pyhelp --register`
    - `gristmill scaling predict besiroglu --params 70B --tokens 1.4T`
    """
    from gristmill.scaling import counted as count_params
    from gristmill.scaling import predict as foresee
    from gristmill.scaling import register as write_down

    saved = _saved(which)
    if run is not None:
        if params is not None or tokens is not None:
            raise RequestError("--run says what to predict: leave --params and --tokens out")
        config, _, vocab_size, _ = _run(run)
        size = float(count_params(config, vocab_size))
        length = float(config.tokens // config.batch_tokens * config.batch_tokens)
    else:
        if params is None or tokens is None:
            raise RequestError("name --params and --tokens, or --run")
        size, length = _count(params, "--params"), _count(tokens, "--tokens")
    if register and run is None:
        raise RequestError("--register writes into a run: name it with --run")
    found = foresee(saved, size, length)
    shown: dict[str, Any] = view.finite(asdict(found)) | {
        "source": saved.source,
        "counted": saved.counted,
    }
    if register and run is not None:
        shown["registered"] = str(write_down(run, saved, found))
    if as_json:
        show_json(shown)
        return
    interval = (
        "no interval: too few runs, or none"
        if math.isnan(found.low)
        else f"95% of such runs between {found.low:.4f} and {found.high:.4f}"
    )
    view.say(f"loss {found.loss:.4f} nats a token ({interval})")
    view.say(
        f"N {view.short(size)}, D {view.short(length)}, C {found.flops:.3g} FLOPs, from {saved.source}"
    )
    if "registered" in shown:
        view.say(f"Registered in {shown['registered']}.")
    for warning in found.warnings:
        err.print(warning, style="yellow", markup=False, soft_wrap=True)


@app.command("optimal")
def optimal(
    which: _FitArgument,
    flops: Annotated[
        str | None,
        typer.Option(metavar="C", help="To train for (6ND).", show_default=False),
    ] = None,
    loss: Annotated[
        float | None,
        typer.Option(metavar="L", help="To reach, instead of --flops.", show_default=False),
    ] = None,
    inference: Annotated[
        str,
        typer.Option(
            "--inference-tokens", metavar="N", help="Of --loss: that it will answer with."
        ),
    ] = "0",
    unique: Annotated[
        str | None,
        typer.Option(
            "--unique-tokens",
            metavar="U",
            help="All there are: more repeats them.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The size and the tokens that make the most of a budget, or that reach a loss for the least.

    --unique-tokens: repeats are worth less (Muennighoff et al. 2023, whose R*_D and R*_N are put on the fit's law).
    --inference-tokens: serving costs too, so smaller and longer (Sardana et al. 2024).

    Examples:

    - `gristmill scaling optimal besiroglu --flops 5.76e23`
    - `gristmill scaling optimal hoffmann --loss 1.9366 --inference-tokens 1T`
    - `gristmill scaling optimal sweep --flops 1e15 --unique-tokens 20M`
    """
    from gristmill.scaling import MUENNIGHOFF, Repeated
    from gristmill.scaling.fit import spread

    saved = _saved(which)
    if (flops is None) == (loss is None):
        raise RequestError("name one of --flops and --loss")
    if loss is not None and unique is not None:
        raise RequestError("--unique-tokens goes with --flops")
    answers = 0.0 if inference == "0" else _count(inference, "--inference-tokens")
    if answers and loss is None:
        raise RequestError(
            "--inference-tokens goes with --loss: what it takes is asked for a given quality"
        )

    if loss is not None:
        found = saved.law.for_inference(loss, answers)
        sampled = [law.for_inference(loss, answers) for law in saved.sampled if loss > law.E]
    elif unique is not None:
        budget, distinct = _count(flops or "", "--flops"), _count(unique, "--unique-tokens")
        worth = (MUENNIGHOFF.reuse, MUENNIGHOFF.excess)
        found = Repeated(saved.law, *worth).optimum(budget, distinct)
        sampled = [Repeated(law, *worth).optimum(budget, distinct) for law in saved.sampled[:200]]
    else:
        budget = _count(flops or "", "--flops")
        found = saved.law.optimum(budget)
        sampled = [law.optimum(budget) for law in saved.sampled]
    intervals = {
        name: spread([getattr(one, name) for one in sampled])
        for name in ("params", "tokens", "loss", "tokens_per_param")
    }
    if as_json:
        told = {name: list(pair) for name, pair in intervals.items() if sampled}
        show_json(
            view.finite(asdict(found))
            | {
                "tokens_per_param": found.tokens_per_param,
                "intervals": told,
                "source": saved.source,
            }
        )
        return
    rows = [
        ("parameters", view.short(found.params), *map(view.short, intervals["params"])),
        ("tokens", view.short(found.tokens), *map(view.short, intervals["tokens"])),
        (
            "tokens a parameter",
            f"{found.tokens_per_param:.1f}",
            *(f"{v:.1f}" for v in intervals["tokens_per_param"]),
        ),
        ("loss", f"{found.loss:.4f}", *(f"{v:.4f}" for v in intervals["loss"])),
        ("training FLOPs", f"{found.flops:.3e}"),
    ]
    if found.inference:
        rows.append(("inference FLOPs", f"{found.inference:.3e}"))
    head = ("", "best", "from", "to") if sampled else ("", "best")
    view.show_table(head, [row[: len(head)] for row in rows])
    view.say(f"From {saved.source}.")


def _run(run: Path) -> tuple[PretrainConfig, dict[str, Path], int, int]:
    """A run's pretraining settings, its inputs, its vocabulary and how many tokens there are to train on."""
    from gristmill.files import read_object
    from gristmill.recipe import Recipe
    from gristmill.recipe.line import LINE
    from gristmill.recipe.manifest import read_manifests
    from gristmill.train.pretrain import PretrainConfig

    if not (run / "recipe.toml").is_file():
        raise RequestError(
            f"{run} is not a run's directory. `gristmill run RECIPE --until tokens` makes one that a sweep can use"
        )
    config = Recipe.load(run).resolve()["pretrain"]
    assert isinstance(config, PretrainConfig)
    known, inputs = read_manifests(run), {}
    for name, (maker, output) in LINE["pretrain"].inputs.items():
        if maker not in known:
            raise RequestError(
                f"{run} has no finished stage {maker}: `gristmill run {run} --until tokens` makes it"
            )
        inputs[name] = run / known[maker]["outputs"][output]["path"]
    told = read_object(inputs["tokens"] / "manifest.json")
    try:
        vocab_size = int(told["vocab_size"])
        unique = sum(int(group["tokens"]) for group in told["splits"]["train"].values())
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{inputs['tokens']}/manifest.json does not list tokens: {error}"
        ) from None
    return config, inputs, vocab_size, unique


def _flops_of(config: PretrainConfig, vocab_size: int) -> float:
    from gristmill.scaling import counted as count_params
    from gristmill.scaling import training_flops

    return training_flops(count_params(config, vocab_size), config.tokens)


def _saved(which: str) -> Saved:
    from gristmill.scaling import PUBLISHED
    from gristmill.scaling.predict import published, read

    if which.lower() in PUBLISHED:
        return published(which.lower(), PUBLISHED[which.lower()])
    path = Path(which)
    if path.is_dir():
        path /= FIT
    if not path.is_file():
        hint = nearest(which.lower(), PUBLISHED)
        raise RequestError(
            f"{path} is not there.{hint} `gristmill scaling fit RESULTS` makes {FIT}; published constants are "
            f"{', '.join(PUBLISHED)}"
        )
    return read(path)


def _checks(
    found: Fit, runs: Runs, exponents: tuple[float, float] | None, samples: int, seed: int
) -> tuple[list[Growth], HeldOut | None, list[str]]:
    """The other approaches, the largest runs left out, and why one of them could not be."""
    from gristmill.scaling import envelope, isoflop, leave_largest_out, parametric

    growths, held_out = [parametric(found)], None
    warnings: list[str] = []
    if samples and not found.sampled:
        warnings.append(
            f"{len(runs)} runs are too few to tell an interval: give two more than unknowns"
        )
    for name, approach in (("approach 1", envelope), ("approach 2", isoflop)):
        try:
            growths.append(approach(runs, samples=samples, seed=seed))
        except RequestError as error:
            warnings.append(f"{name} is left out: {error}")
    warnings += [warning for growth in growths for warning in growth.warnings]
    try:
        held_out = leave_largest_out(
            runs, exponents=exponents, samples=min(samples, 200), seed=seed
        )
    except RequestError as error:
        warnings.append(f"the largest runs were not left out: {error}")
    return growths, held_out, warnings


def _rates(runs: Runs, warnings: list[str]) -> list[dict[str, float]]:
    from gristmill.scaling import rates_of

    try:
        return [asdict(one) | {"doubled": one.doubled} for one in rates_of(runs)]
    except RequestError as error:
        warnings.append(f"learning rates: {error}")
        return []


def _write_page(
    html: Path,
    found: Fit,
    growths: list[Growth],
    held_out: HeldOut | None,
    warnings: list[str],
    source: str,
) -> None:
    from gristmill.files import write_text
    from gristmill.scaling import fit_page, profiles

    if html.is_dir():
        raise RequestError(f"--html {html} is a directory; name a file in it")
    text = fit_page(found, growths, profiles(found.runs), held_out, warnings, source)
    write_text(html, text)


def _exponents(given: str | None) -> tuple[float, float] | None:
    if given is None:
        return None
    try:
        alpha, beta = map(float, given.split(","))
    except ValueError:
        raise RequestError(f"--exponents are two numbers, such as 0.35,0.37, not {given}") from None
    if not (0 < alpha < 5 and 0 < beta < 5):
        raise RequestError(f"--exponents lie between 0 and 5, not {given}")
    return alpha, beta


def _factor(given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise RequestError(f"--rates are factors such as 0.5,2, not {given}")
    return value


def _count(given: str, option: str) -> float:
    found = _NUMBER.fullmatch(given.strip().replace(",", ""))
    number = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 1 <= number < math.inf:
        raise RequestError(f"{option} must be a number such as 2e13, 300B or 4M, not {given}")
    return number
