"""`gristmill inspect`: the next-token distribution after a text, and how surprising the text itself was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gristmill.cli.console import err, out, show_json

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

    Examples: `gristmill inspect "The capital of France is"`,
    `gristmill inspect runs/pyhelp "import os" --top 5`
    """
    from dataclasses import asdict

    from gristmill.engine import inspect as read
    from gristmill.formats import Model, newest_run

    source = model_or_text if text is not None else str(newest_run())
    text = text if text is not None else model_or_text
    model = Model.load(source)
    seen = read(model, text, top)
    if as_json:
        show_json({"model": str(model.path), "text": text, **asdict(seen)})
        return
    err.print(f"model: {model.path}", style="dim", soft_wrap=True)
    _show(seen)


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
