"""`gristmill report`: rebuild a run's page from what is there, or show where a result comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gristmill.cli.console import out, show_json
from gristmill.errors import RequestError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the web browser.")
    ] = False,
    lineage: Annotated[
        str | None,
        typer.Option(
            metavar="ARTIFACT",
            help="Show the chain from an artifact (dpo, dpo/model) back to documents and settings.",
        ),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Rebuild a run's report.html, also of a run that is not finished.

    Examples:

        gristmill report runs/pyhelp --open

        gristmill report runs/pyhelp --lineage dpo/model
    """
    from gristmill.recipe.manifest import lineage as trace
    from gristmill.recipe.manifest import read_manifests

    if not run.is_dir():
        raise RequestError(f"{run} is not a directory; give a run directory, such as runs/pyhelp")
    manifests = read_manifests(run)
    if not manifests:
        raise RequestError(f"{run} has no finished stage to report on")
    if lineage is not None:
        chain = trace(run, lineage)
        if json_output:
            show_json(chain)
        else:
            out.print(_tree(chain))
        return
    from gristmill.recipe.page import rebuild

    path = rebuild(run)
    if open_page:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    if json_output:
        show_json({"report": str(path), "stages": list(manifests)})
    else:
        out.print(str(path), soft_wrap=True, markup=False)


def _tree(chain: dict[str, Any]) -> Any:
    """The chain as a tree; a stage that was shown above is named, not unfolded again."""
    from rich.markup import escape
    from rich.tree import Tree

    shown: set[str] = set()

    def label(node: dict[str, Any]) -> str:
        sha = node.get("sha256") or next(iter(node["outputs"].values()), {}).get("sha256", "")
        return f"[bold]{escape(node['artifact'])}[/bold]  [dim]sha256 {sha[:12]}[/dim]"

    def grow(branch: Tree, node: dict[str, Any]) -> None:
        if node["stage"] in shown:
            branch.add("[dim](as above)[/dim]")
            return
        shown.add(node["stage"])
        settings = ", ".join(
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in node["config"].items()
        )
        branch.add(f"[dim]settings: {escape(settings) or 'none'}[/dim]")
        made_by = ", ".join(f"{name} {version}" for name, version in node["versions"].items())
        branch.add(f"[dim]key {node['key'][:12]}, made by {escape(made_by)}[/dim]")
        for parent in node["from"]:
            grow(branch.add(label(parent)), parent)

    tree = Tree(label(chain))
    grow(tree, chain)
    return tree
