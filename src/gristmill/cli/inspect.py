"""`gristmill inspect`: the next-token distribution after a text, and how surprising the text itself was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.asking import MODEL_HELP, read_input
from gristmill.cli.console import err, out, show_json
from gristmill.errors import RequestError

if TYPE_CHECKING:
    from rich.text import Text

    from gristmill.engine import Candidate, Inspection

# From so many bits on, a token is shown in this colour: expected, open, surprising, a shock.
_COLOURS = ((0.0, "green"), (2.0, ""), (5.0, "yellow"), (9.0, "red"))
_BAR_BITS = 16.0  # the surprisal that a full bar stands for


def inspect(
    model_or_text: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default="the newest run",
            help=MODEL_HELP,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", show_default=False, help='"-" reads standard input.'),
    ] = None,
    top: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many next tokens to show.")
    ] = 10,
    alternatives: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="How many likeliest tokens to show at each place."),
    ] = 3,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the text as a heat map of its surprisal: one page, opens anywhere.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Show what MODEL expects after TEXT, and each token's probability and surprisal.

    For every token: its probability, its surprisal in bits, its rank (1: nothing was likelier), the
    entropy of the distribution there (the surprisal that the model expected), and what was likeliest.

    Of a run, the base model is asked: it continues text, the later ones answer. Without TEXT, a run
    shows its models, and a model (directory, .gguf or llama2.c file) what it holds.

    Examples:

    - `gristmill inspect "The capital of France is"`
    - `gristmill inspect runs/pyhelp "import os" --top 5`
    - `gristmill inspect runs/pyhelp - --html heat.html < notes.txt`
    - `gristmill inspect runs/pyhelp`
    """
    from dataclasses import asdict

    from gristmill.cli.source import for_raw_text
    from gristmill.engine import inspect as read
    from gristmill.formats import Model, newest_run

    if model_or_text is None:
        raise RequestError("give a TEXT, a MODEL to see what it holds, or MODEL and TEXT")
    if html is not None:
        _check_place(html.expanduser())
    if text is None and _is_model(model_or_text):
        if html is not None:
            raise RequestError(f"--html shows a text; give one after {model_or_text}")
        _show_model(model_or_text, as_json)
        return
    source, given = (str(newest_run()), model_or_text) if text is None else (model_or_text, text)
    read_text = read_input() if given == "-" else given
    model = Model.load(for_raw_text(source))
    seen = read(model, read_text, top, alternatives)
    if html is not None:
        from gristmill.cli.heatmap import heatmap
        from gristmill.files import write_text

        write_text(html.expanduser(), heatmap(seen, model))
    if as_json:
        written = {} if html is None else {"html": str(html)}
        show_json({"model": str(model.path), "text": read_text, **asdict(seen), **written})
        return
    _show(seen)
    if html is not None:
        err.print(f"the heat map is in {html}", markup=False, soft_wrap=True)


def _check_place(html: Path) -> None:
    """Raises RequestError, before anything is computed, for where no file can go."""
    if html.is_dir():
        raise RequestError(f"--html {html} is a directory; name a file in it")
    if not html.parent.is_dir():
        raise RequestError(f"--html {html}: there is no directory {html.parent}; make it first")


def _is_model(given: str) -> bool:
    """Whether the only argument is a run, a model directory or a model's file rather than a text."""
    path = os.path.expanduser(given)
    named = path.endswith((".gguf", ".bin")) or path.startswith(("/", "./", "../", "runs/"))
    if named and not any(map(str.isspace, path)):
        return True  # also where nothing is there: the error then says so
    marks = ("run.json", "recipe.toml", "config.json", "model/config.json")
    return any(os.path.isfile(os.path.join(path, mark)) for mark in marks)


def _show_model(source: str, as_json: bool) -> None:
    """What a run or a model holds."""
    from gristmill.cli.holdings import holdings, show
    from gristmill.formats import resolve

    if (Path(source).expanduser() / "run.json").is_file():
        _show_models(source, as_json)
        return
    found = holdings(resolve(source))
    show_json(found) if as_json else show(found)


def _show_models(source: str, as_json: bool) -> None:
    """The models of a run; its own is the one to chat with."""
    from gristmill.formats import load_config, resolve
    from gristmill.recipe import LINE
    from gristmill.recipe.headline import amount

    own = resolve(source)
    run = Path(source).expanduser()
    made = [run / stage / "model" for stage in LINE]
    found = [path for path in made if (path / "config.json").is_file()]
    rows: list[dict[str, Any]] = []
    for path in found:
        config = load_config(path)
        node = LINE.get(path.parent.name)
        rows.append(
            {
                "model": str(path),
                "parameters": config.num_parameters,
                "context": config.max_seq_len,
                "vocabulary": config.vocab_size,
                "stage_does": node.does if node else "",
                "answers_chats": path == own,
            }
        )
    if as_json:
        show_json({"models": rows})
        return
    from rich import box
    from rich.table import Table

    table = Table(title=f"Models in {source}", title_justify="left", box=box.SIMPLE)
    for heading in ("model", "parameters", "context", "what its stage does"):
        table.add_column(heading, no_wrap=heading == "model")
    for row in rows:
        path = Path(row["model"])
        name = path.relative_to(run) if path.is_relative_to(run) else path
        mark = " *" if row["answers_chats"] else ""
        shape = (amount(row["parameters"]), f"{row['context']:,}")
        table.add_row(f"{name}{mark}", *shape, row["stage_does"])
    out.print(table)
    out.print("* is the model that chat, serve and eval take.")
    example = f'gristmill inspect {source} "import os"'
    out.print(f"Give a text to see what it expects next: {example}", markup=False, soft_wrap=True)


def _show(seen: Inspection) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if seen.tokens:
        names = [Text(repr(token.token)) for token in seen.tokens]
        widest = min(20, max(5, *(name.cell_len for name in names)))
        others = 6 + 12 + 5 + 7 + 5 + 2  # the other columns, the gaps and the margins
        table = Table(title="The text", title_justify="left", box=box.SIMPLE, padding=0)
        table.add_column("token", width=widest, no_wrap=True, overflow="ellipsis")
        table.add_column("prob.", width=6, justify="right", no_wrap=True)
        table.add_column("surprisal", width=12, no_wrap=True)
        table.add_column("rank", width=5, justify="right", no_wrap=True)
        table.add_column("entropy", width=7, justify="right", no_wrap=True)
        rest = max(18, out.width - widest - others)
        if any(token.expected for token in seen.tokens):
            table.add_column("likeliest there", width=rest, no_wrap=True, overflow="ellipsis")
        for token, name in zip(seen.tokens, names, strict=True):
            if token.surprisal is None:
                table.add_row(name, "–", "–", "–", "–")
                continue
            name.stylize(style := _colour(token.surprisal))
            bar = "█" * round(6 * min(1.0, token.surprisal / _BAR_BITS)) or "▏"
            table.add_row(
                name,
                f"{token.probability:.4f}",
                Text(f"{token.surprisal:5.2f} {bar}", style=style),
                f"{token.rank:,}",
                f"{token.entropy:.2f}",
                _expected(token.expected, rest),
            )
        out.print(table)
    if seen.loss is not None and seen.perplexity is not None:
        measure = "" if seen.bits_per_byte is None else f"   {seen.bits_per_byte:.3f} bits per byte"
        out.print(
            f"loss {seen.loss:.4f} nats per token   perplexity {seen.perplexity:,.2f}{measure}   "
            f"mean entropy {seen.entropy:.2f} bits\n",
            soft_wrap=True,
        )
    table = Table(title="What comes next", title_justify="left", box=box.SIMPLE)
    table.add_column("token")
    table.add_column("probability", justify="right")
    table.add_column("")
    for candidate in seen.next:
        bar = "█" * round(30 * candidate.probability) or "▏"
        table.add_row(Text(repr(candidate.token)), f"{candidate.probability:.4f}", bar)
    if seen.rest > 0:
        table.add_row("all others", f"{seen.rest:.4f}", "")
    out.print(table)
    out.print(f"entropy {seen.next_entropy:.2f} bits")


def _colour(bits: float) -> str:
    return next(colour for least, colour in reversed(_COLOURS) if bits >= least)


def _expected(candidates: tuple[Candidate, ...], width: int) -> Text:
    """The likeliest tokens, quoted so that spaces and newlines are visible, each with its probability; as many in a
    line as fit `width`."""
    from rich.text import Text

    shown, room = Text(), width
    for i, candidate in enumerate(candidates):
        one = Text(f"{candidate.token!r} ").append(f"{candidate.probability:.2f}", style="dim")
        if i and one.cell_len + 2 > room:
            shown.append("\n")
            room = width
        elif i:
            shown.append("  ")
            room -= 2
        shown.append(one)
        room -= one.cell_len
    return shown
