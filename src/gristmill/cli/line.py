"""`gristmill pretrain`, `sft` and `align`: a recipe as far as one kind of model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from gristmill.cli.run import (
    DryRunOption,
    FromOption,
    JsonOption,
    OutOption,
    RecipeArgument,
    SetOption,
    VerboseOption,
    VerifyOption,
    start,
)
from gristmill.errors import RequestError, nearest

# what `--method` may be -> the stage that does it
METHODS = {"dpo": "dpo"}


def _as_far_as(stage: str, help_text: str) -> Callable[..., None]:
    """The command that runs a recipe until `stage` is done."""

    def command(
        recipe: RecipeArgument = "pyhelp",
        out_dir: OutOption = None,
        settings: SetOption = None,
        from_stage: FromOption = None,
        dry_run: DryRunOption = False,
        verbose: VerboseOption = False,
        verify: VerifyOption = False,
        as_json: JsonOption = False,
    ) -> None:
        start(recipe, out_dir, settings, from_stage, stage, dry_run, verbose, verify, as_json)

    command.__doc__ = help_text
    return command


pretrain = _as_far_as(
    "pretrain",
    """Run a recipe as far as the base model: documents, tokenizer, tokens, pretraining.

    Examples:

        gristmill pretrain pyhelp --set size=tiny

        gristmill pretrain pyhelp --set pretrain.tokens=2000000 --out runs/longer
    """,
)

sft = _as_far_as(
    "sft",
    """Run a recipe as far as the chat model: supervised fine-tuning and what it needs.

    Examples:

        gristmill sft pyhelp --set size=tiny

        gristmill sft pyhelp --from sft --set sft.epochs=3
    """,
)


def align(
    recipe: RecipeArgument = "pyhelp",
    method: Annotated[
        str, typer.Option("--method", metavar="METHOD", help=f"One of: {', '.join(METHODS)}.")
    ] = "dpo",
    out_dir: OutOption = None,
    settings: SetOption = None,
    from_stage: FromOption = None,
    dry_run: DryRunOption = False,
    verbose: VerboseOption = False,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe as far as the aligned model: preference optimization and what it needs.

    Examples:

        gristmill align pyhelp --method dpo --set size=tiny

        gristmill align pyhelp --method dpo --set dpo.beta=0.2
    """
    if method not in METHODS:
        raise RequestError(
            f'--method: there is no method "{method}".{nearest(method, METHODS)} '
            f"Methods: {', '.join(METHODS)}."
        )
    until = METHODS[method]
    start(recipe, out_dir, settings, from_stage, until, dry_run, verbose, verify, as_json)
