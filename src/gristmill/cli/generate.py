"""`gristmill generate`: continue a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gristmill.cli.console import err, show_json
from gristmill.cli.terminal import write
from gristmill.errors import RequestError


def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a model directory or a .gguf.")
    ],
    prompt: Annotated[str, typer.Argument(help='The text to continue; "-" reads standard input.')],
    max_tokens: Annotated[int, typer.Option(help="At most this many new tokens.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token each time; higher varies more.")
    ] = 1.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens that together hold this much.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from this many likeliest tokens.", show_default="all")
    ] = None,
    min_p: Annotated[
        float, typer.Option(help="Leave out tokens less likely than this share of the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens that were there before less likely.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same text.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this string; may be given several times.")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json: log-probabilities of tokens and this many alternatives."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show text as it is made, or at the end.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Continue PROMPT with MODEL; of a run, with its base model.

    Only the new text goes to standard output.

    Examples:

    - `gristmill generate runs/pyhelp "def nlargest(n, iterable):" --temperature 0`
    - `gristmill generate runs/pyhelp "import " --seed 7 --top-p 0.9 --stop "\\n\\n"`
    - `cat notes.txt | gristmill generate runs/pyhelp - --max-tokens 50 --json`
    """
    from dataclasses import asdict

    from gristmill.lm import Completion, Request, SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(s.replace("\\n", "\n").replace("\\t", "\t") for s in stop or ()),
        logprobs=logprobs,
    )
    if logprobs is not None and not as_json:
        raise RequestError("--logprobs are shown by --json; add it")

    from gristmill.cli.source import for_raw_text
    from gristmill.engine import Engine
    from gristmill.formats import Model

    loaded = Model.load(for_raw_text(model))
    engine = Engine(loaded)
    request = Request(sys.stdin.read() if prompt == "-" else prompt, params)
    completion: Completion | None = None
    for chunk in engine.stream(request):
        completion = chunk.completion
        if stream and not as_json:
            write(chunk.text)
    assert completion is not None
    if as_json:
        show_json({"model": str(loaded.path), "params": asdict(params), **asdict(completion)})
        return
    if not stream:
        write(completion.text)
    write("\n")
    if sys.stderr.isatty():
        note = "stopped" if completion.finish_reason == "stop" else "cut at the limit"
        err.print(f"{len(completion.token_ids)} tokens, {note}, seed {seed}", style="dim")
