"""`gristmill inspect`: the next-token distribution after a text, and how surprising the text itself was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.console import out, show_json

if TYPE_CHECKING:
    from gristmill.engine import Inspection


def inspect(
    model_or_text: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="Model or run directory; else the newest run.")
    ],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", show_default=False)] = None,
    top: Annotated[int, typer.Option(min=1, help="How many next tokens to show.")] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Show what MODEL expects after TEXT, and each token's probability and surprisal.

    Of a run, the base model is asked: it continues text, the later ones answer. Without TEXT, a run
    shows its models, and a model (directory, .gguf or llama2.c file) what it holds.

    Examples: `gristmill inspect "The capital of France is"`, `gristmill inspect runs/pyhelp`,
    `gristmill inspect runs/pyhelp "import os" --top 5`
    """
    from dataclasses import asdict

    from gristmill.cli.holdings import holdings
    from gristmill.cli.holdings import show as show_holdings
    from gristmill.cli.source import for_raw_text
    from gristmill.engine import inspect as read
    from gristmill.formats import Model, newest_run, resolve

    if text is None and _is_model(model_or_text):
        if (Path(model_or_text).expanduser() / "run.json").is_file():
            _show_models(model_or_text, as_json)
        else:
            found = holdings(resolve(model_or_text))
            show_json(found) if as_json else show_holdings(found)
        return
    source = model_or_text if text is not None else str(newest_run())
    text = text if text is not None else model_or_text
    model = Model.load(for_raw_text(source))
    seen = read(model, text, top)
    if as_json:
        show_json({"model": str(model.path), "text": text, **asdict(seen)})
        return
    _show(seen)


def _is_model(given: str) -> bool:
    """Whether the only argument is a run, a model directory or a model's file rather than a text."""
    path = os.path.expanduser(given)
    named = path.endswith((".gguf", ".bin")) or path.startswith(("/", "./", "../", "runs/"))
    if named and not any(map(str.isspace, path)):
        return True  # also where nothing is there: the error then says so
    marks = ("run.json", "recipe.toml", "config.json", "model/config.json")
    return any(os.path.isfile(os.path.join(path, mark)) for mark in marks)


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

    if seen.tokens:
        table = Table(title="The text", title_justify="left", box=box.SIMPLE)
        table.add_column("token")
        for heading in ("probability", "surprisal (bits)", "rank"):
            table.add_column(heading, justify="right")
        for token in seen.tokens:
            numbers = ("–", "–", "–")
            if token.probability is not None:
                numbers = (f"{token.probability:.4f}", f"{token.surprisal:.2f}", f"{token.rank}")
            table.add_row(_quote(token.token), *numbers)
        out.print(table)
    if seen.loss is not None and seen.perplexity is not None:
        measure = "" if seen.bits_per_byte is None else f"   {seen.bits_per_byte:.3f} bits per byte"
        out.print(
            f"loss {seen.loss:.4f} nats per token   perplexity {seen.perplexity:,.2f}{measure}\n"
        )
    table = Table(title="What comes next", title_justify="left", box=box.SIMPLE)
    table.add_column("token")
    table.add_column("probability", justify="right")
    table.add_column("")
    for candidate in seen.next:
        bar = "█" * round(30 * candidate.probability) or "▏"
        table.add_row(_quote(candidate.token), f"{candidate.probability:.4f}", bar)
    if seen.rest > 0:
        table.add_row("all others", f"{seen.rest:.4f}", "")
    out.print(table)


def _quote(token: str) -> str:
    """The token with its spaces and newlines visible, and brackets that rich would read as markup kept."""
    from rich.markup import escape

    return escape(repr(token))
