"""`gristmill chat`: a conversation in the terminal, or one question a line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.console import err, out, show_json
from gristmill.cli.terminal import write
from gristmill.errors import RequestError

if TYPE_CHECKING:
    from gristmill.lm import LM, Message, SamplingParams
    from gristmill.retrieval import Answer, Index

_HELP = "/new starts over, /quit or Ctrl-D leaves, Ctrl-C stops an answer."


def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a model directory or a .gguf.")
    ],
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
    seed: Annotated[int, typer.Option(help="The same seed draws the same answers.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Read questions to the end; one JSON document of all.")
    ] = False,
) -> None:
    """Talk with MODEL.

    In a terminal the conversation continues from turn to turn. From a pipe every line is a question
    of its own.

    Examples:

    - `gristmill chat runs/pyhelp --rag`
    - `echo "What does heapq.nlargest do?" | gristmill chat runs/pyhelp --rag --json`
    """
    from gristmill.lm import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)

    from gristmill.cli.source import OF_RUN, model_name, open_index
    from gristmill.engine import Engine
    from gristmill.formats import Model

    opened = open_index(model, index or OF_RUN) if rag or index else None
    engine = Engine(Model.load(model))
    talk = Talk(engine, params, opened, system)
    if not as_json and sys.stdin.isatty():
        out.print(f"[bold]{model_name(model)}[/bold]  [dim]{_HELP}[/dim]", highlight=False)
        _converse(talk)
        return
    turns = [_one(talk, question, not as_json) for question in _lines()]
    if as_json:
        show_json({"model": str(engine.model.path), "turns": turns})
    if any("error" in turn for turn in turns):
        raise typer.Exit(RequestError.exit_code)


@dataclass
class Talk:
    """A conversation: asks, and remembers what was said."""

    lm: LM
    params: SamplingParams
    index: Index | None = None
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def ask(self, question: str) -> Iterator[str | Answer]:
        """The answer piece by piece; with an index, at the end the Answer with its citations.

        A question that fails or is stopped before its end is not remembered.
        """
        told = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*told, *self.turns, {"role": "user", "content": question}]
        said = ""
        for piece in self._pieces(messages):
            said = said + piece if isinstance(piece, str) else piece.own_words
            yield piece
        self.turns += [messages[-1], {"role": "assistant", "content": said}]

    def _pieces(self, messages: list[Message]) -> Iterator[str | Answer]:
        if self.index is None:
            for chunk in self.lm.stream_chat(messages, self.params):
                yield chunk.text
        else:
            from gristmill.retrieval import answer_stream

            yield from answer_stream(self.lm, self.index, messages, self.params)


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _one(talk: Talk, question: str, show: bool) -> dict[str, Any]:
    """Ask one question of its own; show it, or tell what came of it."""
    talk.turns = []
    turn: dict[str, Any] = {"question": question, "answer": ""}
    if show:
        out.print(f"> {question}", style="bold", markup=False, soft_wrap=True)
    try:
        for piece in talk.ask(question):
            if isinstance(piece, str):
                turn["answer"] += piece
            else:
                turn["found"] = piece.found
                turn["citations"] = [
                    {"source": p.source, "line": p.line, "title": p.title} for p in piece.citations
                ]
            if show:
                _show(piece)
    except RequestError as error:
        turn["error"] = str(error)
        if show:
            err.print(f"gristmill: {error}", markup=False, soft_wrap=True)
    if show:
        out.print()
    return turn


def _converse(talk: Talk) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing and history
    while True:
        try:
            question = input("\n› ").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        if question in ("/quit", "/exit"):
            return
        if question == "/new":
            talk.turns = []
            out.print("A new conversation.", style="dim")
        elif question.startswith("/"):
            out.print(_HELP, style="dim")
        elif question:
            try:
                for piece in talk.ask(question):
                    _show(piece)
            except KeyboardInterrupt:
                out.print("\n(stopped)", style="dim")
            except RequestError as error:
                err.print(f"{error}. /new starts over.", style="red", markup=False, soft_wrap=True)


def _show(piece: str | Answer) -> None:
    """Text as it comes; at the end of a looked-up answer, where it is from."""
    if isinstance(piece, str):
        write(piece)
        return
    out.print()
    for passage in piece.citations:
        out.print(f"  {passage.cite}  {passage.title}", style="dim", markup=False, soft_wrap=True)
