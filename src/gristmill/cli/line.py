"""`gristmill pretrain`, `sft` and `align`: a recipe as far as one kind of model."""

from __future__ import annotations

from typing import Annotated

import typer

from gristmill.cli.run import (
    DryRunOption,
    FromOption,
    JsonOption,
    OutOption,
    RecipeArgument,
    SetOption,
    VerifyOption,
    start,
)
from gristmill.errors import RequestError, nearest

# what `--method` may be -> the stage that does it
METHODS = {"dpo": "dpo"}


def pretrain(
    recipe: RecipeArgument = "pyhelp",
    out_dir: OutOption = None,
    settings: SetOption = None,
    from_stage: FromOption = None,
    dry_run: DryRunOption = False,
    verify: VerifyOption = False,
    json_output: JsonOption = False,
) -> None:
    """Run a recipe as far as the base model: documents, tokenizer, tokens, pretraining.

    Examples:

        gristmill pretrain pyhelp --set size=tiny

        gristmill pretrain pyhelp --set pretrain.tokens=2000000 --out runs/longer
    """
    start(
        recipe,
        out_dir,
        settings or (),
        from_stage=from_stage,
        until="pretrain",
        dry_run=dry_run,
        verify=verify,
        as_json=json_output,
    )


def sft(
    recipe: RecipeArgument = "pyhelp",
    out_dir: OutOption = None,
    settings: SetOption = None,
    from_stage: FromOption = None,
    dry_run: DryRunOption = False,
    verify: VerifyOption = False,
    json_output: JsonOption = False,
) -> None:
    """Run a recipe as far as the chat model: supervised fine-tuning and what it needs.

    Examples:

        gristmill sft pyhelp --set size=tiny

        gristmill sft pyhelp --from sft --set sft.epochs=3
    """
    start(
        recipe,
        out_dir,
        settings or (),
        from_stage=from_stage,
        until="sft",
        dry_run=dry_run,
        verify=verify,
        as_json=json_output,
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
    verify: VerifyOption = False,
    json_output: JsonOption = False,
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
    start(
        recipe,
        out_dir,
        settings or (),
        from_stage=from_stage,
        until=METHODS[method],
        dry_run=dry_run,
        verify=verify,
        as_json=json_output,
    )
