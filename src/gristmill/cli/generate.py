"""`gristmill generate`: continue a text, or every line of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.answer import CUT, answer, is_cut
from gristmill.cli.asking import (
    ActivationsOption,
    CacheOption,
    DraftOption,
    ModelArgument,
    draft_note,
    draft_of,
    grammar_of,
    read_input,
    unescaped,
)
from gristmill.cli.console import counted, err, show_json
from gristmill.cli.terminal import write
from gristmill.errors import RequestError, WorkError

if TYPE_CHECKING:
    from gristmill.engine import Engine
    from gristmill.lm import Completion, Request, SamplingParams

_ENDS, _DRAWS, _FORMS = "Where the text ends", "How tokens are drawn", "What form the text has"


def generate(
    model: ModelArgument,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help='The text to continue; "-" reads standard input.',
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="Continue every line of standard input; JSON lines out.")
    ] = False,
    n: Annotated[int, typer.Option("--n", help="How many answers.", rich_help_panel=_DRAWS)] = 1,
    max_tokens: Annotated[
        int, typer.Option(help="At most this many new tokens.", rich_help_panel=_ENDS)
    ] = 128,
    min_tokens: Annotated[
        int,
        typer.Option(
            help="Nothing ends the text before this many new tokens.", rich_help_panel=_ENDS
        ),
    ] = 0,
    temperature: Annotated[
        float,
        typer.Option(
            help="0 takes the likeliest token each time; higher varies more.",
            rich_help_panel=_DRAWS,
        ),
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(
            help="Draw from the likeliest tokens that together hold this much.",
            rich_help_panel=_DRAWS,
        ),
    ] = 1.0,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Draw from this many likeliest tokens.", show_default="all", rich_help_panel=_DRAWS
        ),
    ] = None,
    min_p: Annotated[
        float,
        typer.Option(
            help="Leave out tokens less likely than this share of the likeliest.",
            rich_help_panel=_DRAWS,
        ),
    ] = 0.0,
    repetition_penalty: Annotated[
        float,
        typer.Option(
            help="Above 1 makes tokens that were there before less likely.", rich_help_panel=_DRAWS
        ),
    ] = 1.0,
    presence_penalty: Annotated[
        float,
        typer.Option(
            help="Above 0 makes tokens of the new text less likely to come again.",
            rich_help_panel=_DRAWS,
        ),
    ] = 0.0,
    frequency_penalty: Annotated[
        float,
        typer.Option(help="The same, more so the more often they came.", rich_help_panel=_DRAWS),
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed draws the same text.",
            show_default="chosen and told",
            rich_help_panel=_DRAWS,
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="End before this string; may be given several times.",
            rich_help_panel=_ENDS,
        ),
    ] = None,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos", help="Go on where the model would end.", rich_help_panel=_ENDS
        ),
    ] = False,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The text must be JSON that fits the schema in this file.",
            rich_help_panel=_FORMS,
        ),
    ] = None,
    json_object: Annotated[
        bool,
        typer.Option(
            "--json-object", help="The text must be a JSON object.", rich_help_panel=_FORMS
        ),
    ] = False,
    regex: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="The text must match this regular expression.",
            rich_help_panel=_FORMS,
        ),
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The text must follow the Lark grammar in this file.",
            rich_help_panel=_FORMS,
        ),
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="The text must be this, or another --choice.",
            rich_help_panel=_FORMS,
        ),
    ] = None,
    draft: DraftOption = None,
    activations: ActivationsOption = "int8",
    cache_dtype: CacheOption = "auto",
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json or --batch: log-probabilities, and so many alternatives."),
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

    Exit code 1 when the limit of tokens cut a text before it had the form that was asked for.

    With --batch every line of standard input is a prompt: text as it stands, or a JSON object with
    `prompt` (or `messages`, for the chat template), an `id` that comes back, and settings of its own,
    named as the options are: `max_tokens`, `temperature`, `stop`, `json_schema`, …. The answers are
    JSON objects, one a line, in the order of the prompts. A bad line gets an `error` and the others
    go on; the exit code is then 2.

    Examples:

    - `gristmill generate runs/pyhelp "def nlargest(n, iterable):" --temperature 0`
    - `gristmill generate runs/pyhelp "import " --seed 7 --stop "\\n\\n" --n 3`
    - `gristmill generate runs/pyhelp "Is 7 a prime? " --choice yes --choice no`
    - `cat notes.txt | gristmill generate runs/pyhelp - --max-tokens 50 --json`
    - `gristmill generate runs/pyhelp --batch < prompts.txt > answers.jsonl`
    """
    from gristmill.lm import Request, SamplingParams

    if batch and prompt not in (None, "-"):
        raise RequestError("with --batch the prompts come from standard input; leave PROMPT out")
    if prompt is None and not batch:
        raise RequestError('give a PROMPT, "-" to read it from standard input, or --batch')
    if logprobs is not None and not (as_json or batch):
        raise RequestError("--logprobs are shown by --json; add it")
    params = SamplingParams(
        n=n,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=unescaped(stop),
        ignore_eos=ignore_eos,
        grammar=grammar_of(json_schema, json_object, regex, grammar, unescaped(choice)),
        logprobs=logprobs,
    )

    from gristmill.cli.source import for_raw_text
    from gristmill.engine import Engine
    from gristmill.formats import Model

    loaded = Model.load(for_raw_text(model), activations=activations)  # type: ignore[arg-type] - checked there
    engine = Engine(loaded, draft=draft_of(draft), cache_dtype=cache_dtype)  # type: ignore[arg-type] - checked there
    if batch:
        _batch(engine, params, as_json)
        return
    request = Request(read_input() if prompt == "-" else prompt or "", params)
    shown = stream and not as_json and n == 1
    completion = _streamed(engine, request) if shown else engine.generate([request])[0]
    completion.checked()
    answers = (completion, *completion.alternatives)
    if as_json:
        from dataclasses import asdict

        told = {"model": str(loaded.path), "params": asdict(params)}
        show_json(told | answer(engine, params, answers))
    else:
        if not shown:
            _show(answers)
        _note(engine, params, answers)
    if any(is_cut(engine, params, one) for one in answers):
        err.print(f"the text was {CUT}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(WorkError.exit_code)


def _streamed(engine: Engine, request: Request) -> Completion:
    """The answer, written as it is made."""
    completion = None
    for chunk in engine.stream(request):
        completion = chunk.completion
        write(chunk.text)
    write("\n")
    assert completion is not None
    return completion


def _show(answers: tuple[Completion, ...]) -> None:
    for i, one in enumerate(answers, 1):
        if len(answers) > 1:
            write(f"--- {i} of {len(answers)} ---\n")
        write(f"{one.text}\n")


def _note(engine: Engine, params: SamplingParams, answers: tuple[Completion, ...]) -> None:
    """How the text ended, and the seed that makes it again."""
    tokens = sum(len(answer.token_ids) for answer in answers)
    ends = {"stop": "stopped", "length": "cut at the limit"}
    note = ", ".join(dict.fromkeys(ends.get(a.finish_reason, a.finish_reason) for a in answers))
    seed = "" if params.temperature == 0 else f", seed {answers[0].seed}"
    note = f"{counted(tokens, 'token')}, {note}{seed}{draft_note(engine)}"
    err.print(note, style="dim", markup=False, soft_wrap=True)


def _batch(engine: Engine, params: SamplingParams, as_json: bool) -> None:
    from gristmill.cli.batch import read_lines
    from gristmill.cli.batch_view import watched

    lines = read_lines(params)
    rows: list[dict[str, Any]] = []
    code = 0
    for line in watched(engine, lines):
        if line.error is not None:
            code = max(code, line.error.exit_code)
            err.print(
                f"line {line.number}: {line.error}", style="red", markup=False, soft_wrap=True
            )
        elif line.cut:
            code = max(code, WorkError.exit_code)
            err.print(f"line {line.number}: {CUT}", style="red", markup=False, soft_wrap=True)
        if as_json:
            rows.append(line.row())
        else:
            show_json(line.row())
    if as_json:
        show_json({"model": str(engine.model.path), "answers": rows})
    if code:
        raise typer.Exit(code)
