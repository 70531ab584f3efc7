"""`gristmill convert`: a model in another format, and the proof that it says the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from gristmill.cli.console import err, out, show_json


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A model directory, a run, a .gguf or llama2.c .bin file."
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="DST", help="NAME.gguf for llama.cpp, else a Hugging Face directory."
        ),
    ],
    quant: Annotated[
        str,
        typer.Option(
            "--type", help="Of a .gguf: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, …"
        ),
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the weights: float32, bfloat16, float16, or auto: as stored.")
    ] = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Keep a copy that differs more than its type explains.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Write the model SRC as DST, with its tokenizer and chat template, and compare the two on a probe text.

    A copy that reads the text as other tokens, formats a chat differently, or whose predictions are
    further from the original's than rounding to its type explains, is not kept.

    Examples:

    - `gristmill convert runs/pyhelp pyhelp.gguf --type Q4_K_M`
    - `gristmill convert stories260K.bin stories`
    - `gristmill convert mistral.gguf mistral-hf --dtype bfloat16`
    """
    from gristmill.formats import convert

    done = convert(source, target, quant=quant, dtype=dtype, force=force)
    if as_json:
        shown = asdict(done) | {"source": str(done.source), "target": str(done.target)}
        show_json(shown)
        return
    parity = done.parity
    names = {"hf": "a Hugging Face directory", "gguf": "a GGUF file"}
    out.print(
        f"{done.target}: {names[done.format]}, {done.kind}, {done.bytes / 1e6:,.1f} MB",
        markup=False,
        soft_wrap=True,
    )
    types = ", ".join(f"{count} × {kind}" for kind, count in done.types.items())
    out.print(f"tensors: {types}", markup=False, soft_wrap=True)
    out.print(
        f"parity on {parity.tokens} tokens: same likeliest token {parity.same_top:.1%}   "
        f"mean KL {parity.kl:.2g} (bound for {done.kind}: {done.bound:g})   "
        f"largest difference of a log-probability {parity.max_difference:.2g}",
        markup=False,
        soft_wrap=True,
    )
    if parity.same_ids and parity.same_chat and parity.kl <= done.bound:
        out.print("tokens, chat template and stop tokens are the same")
    else:
        err.print("kept because of --force: this copy does not say what the original says")
    out.print(
        f'Try it: gristmill generate {done.target} "Once upon a time"', markup=False, soft_wrap=True
    )
