"""`gristmill parity`: proof that every way to run a model says the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gristmill.cli.asking import ModelArgument
from gristmill.cli.console import err, out, show_json
from gristmill.errors import WorkError, missing_extra

if TYPE_CHECKING:
    from gristmill.evaluate.parity import PathResult, Reader


def parity(
    model: ModelArgument,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="A copy in another format; may be given several times."),
    ] = None,
    http: Annotated[
        bool | None,
        typer.Option(
            "--http/--no-http",
            help="Ask the HTTP server too, on loopback.",
            show_default="if it is installed",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Compare every way to run MODEL with the forward pass that a trainer computes losses from.

    The same texts and a chat go through the engine in each of its states (token by token, the whole
    prompt, chunks, among others, after a cached beginning, with drafts), through the HTTP server, and
    through the copies given with --against. For each path: how far the log-probabilities of given
    tokens are from the trainer's (nats), how often the likeliest token is the same, and whether that is
    within the path's bound. Of the engine's paths, those of the native runner must agree to the bit.

    Exit code 1 when a path is broken.

    Examples:

    - `gristmill parity runs/pyhelp`
    - `gristmill parity runs/pyhelp --against pyhelp.gguf --against int8`
    """
    from gristmill.evaluate.parity import parity as compare_paths
    from gristmill.formats import Model, resolve

    for path in against or ():
        resolve(path)  # a mistyped name is told before anything is computed
    others = _readers(http)
    # Rounded activations are no continuous function of what comes before: a last bit would show as a hundredth.
    loaded = Model.load(model, activations="float")
    results: list[PathResult] = []
    with err.status("the engine's paths") as status:
        for result in compare_paths(loaded, against or (), others):
            results.append(result)
            status.update(f"{len(results)} compared, the last one: {result.path}")
    broken = [result.path for result in results if result.status == "broken"]
    if as_json:
        paths = [asdict(result) for result in results]
        show_json({"model": str(loaded.path), "passed": not broken, "paths": paths})
    else:
        _show(results)
    if broken:
        err.print(f"broken: {', '.join(broken)}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(WorkError.exit_code)


def _readers(http: bool | None) -> list[Reader]:
    """The HTTP path, if it is wanted and can be had."""
    if http is False:
        return []
    try:
        from gristmill.cli.parity_http import NAME, read_http
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in ("starlette", "uvicorn"):
            raise
        if http:
            raise missing_extra(package, "serve") from None
        err.print(f"HTTP is not compared: {package} is not installed", style="dim")
        return []
    return [(NAME, read_http)]


def _show(results: list[PathResult]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("path", overflow="fold")
    for heading in ("tokens", "max |Δ|", "mean |Δ|", "top-1", "bits"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("bound", no_wrap=True)
    marks = {"same": ("✓", "green"), "broken": ("✗", "red"), "not run": ("–", "dim")}
    for r in results:
        mark, style = marks[r.status]
        numbers = [""] * 5
        if (
            r.max_difference is not None
            and r.mean_difference is not None
            and r.same_top is not None
        ):
            numbers = [
                f"{r.tokens:,}",
                f"{r.max_difference:.1e}",
                f"{r.mean_difference:.1e}",
                f"{r.same_top:.1%}",
                {None: "", True: "same", False: "other"}[r.identical],
            ]
        bound = r.bound if r.kl is None else f"{r.bound} ({r.kl:.1e})"
        table.add_row(Text(mark, style=style), Text(r.path), *numbers, Text(bound))
    out.print(table)
    for r in results:
        if r.why:
            out.print(f"{r.path}: {r.status}: {r.why}", markup=False, soft_wrap=True)
    chats = [r.same_chat for r in results if r.same_chat is not None]
    if chats and all(chats):
        out.print("Where a chat was compared, it became the same ids.")
    out.print(
        "|Δ|: of log-probabilities of given tokens from the trainer's forward pass, in nats; top-1: how often the "
        "likeliest token is the same; bits: whether each log-probability is the first path's to the bit.",
        soft_wrap=True,
        style="dim",
    )
