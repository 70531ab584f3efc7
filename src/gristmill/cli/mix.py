"""`gristmill data mix`: the weights of a mixture, learned from small runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gristmill.cli.bar import Bar
from gristmill.cli.console import out, show_json
from gristmill.cli.trace import shards_in, tokens_of


def mix(
    tokens: Annotated[
        Path, typer.Argument(help="A run, or a directory of token shards (with --tokenizer).")
    ],
    target: Annotated[str, typer.Option(help="The group whose held-out text is to be learned.")],
    runs: Annotated[int, typer.Option(min=4, help="Small runs to train.")] = 24,
    tokens_each: Annotated[
        int, typer.Option(min=1, help="Tokens that each learns from.")
    ] = 400_000,
    tokenizer: Annotated[Path | None, typer.Option(help="The shards' tokenizer.")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the runs' results are kept.")
    ] = Path("mix"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Train small models on random mixtures of the groups, and propose the weights that TARGET learns best from."""
    from gristmill.train.mixing import Search, learn_mixture

    if tokenizer is None:
        _, shards, vocabulary, _ = tokens_of(str(tokens))
    else:
        shards, vocabulary = shards_in(tokens), tokenizer
    search = Search(target, runs=runs, tokens=tokens_each, seed=seed)
    with Bar() as view:
        view.begin("training proxies")
        found = learn_mixture(shards, vocabulary, output, search, view.progress)
    if as_json:
        show_json(asdict(found))
        return
    for name, weight in sorted(found.weights.items(), key=lambda pair: -pair[1]):
        out.print(
            f"{name:<20} {weight:6.1%}   [dim]{found.low[name]:.1%} to {found.high[name]:.1%}[/dim]"
        )
    out.print(
        f"\npredicted loss {found.loss:.4f} ({found.loss_low:.4f} to {found.loss_high:.4f}); "
        f"the best of the runs had {found.best_seen:.4f}"
    )
    weights = ", ".join(f'"{name}" = {weight:.3f}' for name, weight in found.weights.items())
    out.print(f"\nIn a recipe:\n\\[tokens]\nmix = {{ {weights} }}", soft_wrap=True)
