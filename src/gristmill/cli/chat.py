"""`gristmill chat`: a conversation in the terminal, or one question a line from a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.asking import CacheOption, DraftOption, ModelArgument, draft_of, input_lines
from gristmill.cli.console import err, out, show_json
from gristmill.errors import RequestError

if TYPE_CHECKING:
    from gristmill.cli.talk import Talk


def chat(
    model: ModelArgument,
    rag: Annotated[
        bool, typer.Option("--rag", help="Look answers up in the run's own index and cite it.")
    ] = False,
    index: Annotated[
        str | None, typer.Option(help="Look answers up in this index (implies --rag).")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="What the model is told before the conversation.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="At most this many tokens an answer.")] = 256,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token each time; higher varies more.")
    ] = 0.0,
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
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed draws the same answers.", show_default="a new one"),
    ] = None,
    draft: DraftOption = None,
    cache_dtype: CacheOption = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Read questions to the end; one JSON document of all.")
    ] = False,
) -> None:
    """Talk with MODEL.

    In a terminal the conversation continues from turn to turn, and /help lists what else can be
    done: undo, retry, change the settings, save and load. From a pipe every line is a question of
    its own, and only the answers are written; a bad line is told by its number, the others go on, and
    the exit code is then 2.

    Examples:

    - `gristmill chat runs/pyhelp --rag`
    - `echo "What is a heap?" | gristmill chat runs/pyhelp --rag --json`
    """
    from gristmill.lm import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )

    from gristmill.cli.converse import HELP, converse
    from gristmill.cli.source import OF_RUN, model_name, open_index
    from gristmill.cli.talk import Talk
    from gristmill.engine import Engine
    from gristmill.formats import Model

    opened = open_index(model, index or OF_RUN) if rag or index else None
    loaded = Model.load(model)
    _ = loaded.tokenizer.chat_template  # a model that cannot chat is told before anything is asked
    engine = Engine(loaded, draft=draft_of(draft), cache_dtype=cache_dtype)  # type: ignore[arg-type] - checked there
    talk = Talk(engine, params, opened, system)
    if not as_json and sys.stdin is not None and sys.stdin.isatty():
        out.print(f"[bold]{model_name(model)}[/bold]  [dim]{HELP}[/dim]", highlight=False)
        converse(talk)
        return
    turns = [_one(talk, number, line, not as_json) for number, line in input_lines()]
    if as_json:
        show_json({"model": str(engine.model.path), "turns": turns})
    if any("error" in turn for turn in turns):
        raise typer.Exit(RequestError.exit_code)


def _one(talk: Talk, number: int, line: str | RequestError, show: bool) -> dict[str, Any]:
    """Ask one question of its own; show the answer, or tell what came of it."""
    from gristmill.cli.converse import show as show_piece

    turn: dict[str, Any] = {"line": number, "question": "", "answer": ""}
    try:
        if isinstance(line, RequestError):
            raise line
        talk.new()
        turn["question"] = line.strip()
        for piece in talk.ask(turn["question"]):
            if isinstance(piece, str):
                turn["answer"] += piece
            else:
                turn["found"] = piece.found
                turn["citations"] = [
                    {"source": p.source, "line": p.line, "title": p.title} for p in piece.citations
                ]
            if show:
                show_piece(piece)
    except RequestError as error:
        turn["error"] = str(error)
        err.print(f"line {number}: {error}", style="red", markup=False, soft_wrap=True)
    if show:
        out.print()
    return turn
