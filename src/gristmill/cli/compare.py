"""`gristmill compare`: a model and its copy, by numbers, or by a person who does not know which is which."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.console import counted, err, out, show_json
from gristmill.errors import RequestError, needing

if TYPE_CHECKING:
    from gristmill.evaluate.blind import Comparison

_PROMPTS = (
    "Explain what a hash table is and when to use one.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "What causes the seasons on Earth?",
    "Write a short, polite email that declines a meeting.",
    "List three ways to save electricity at home.",
    "What is the difference between weather and climate?",
    "Translate into French: The library opens at nine.",
    "A train leaves at 9:40 and arrives at 12:15. How long does the journey take?",
    "Describe the taste of an apple to someone who has never eaten one.",
    "What does the Python keyword `yield` do?",
    "Give me a recipe for pancakes for two people.",
    "Summarize the story of Romeo and Juliet in three sentences.",
    "Why is the sky blue?",
    "Write a haiku about autumn rain.",
    "How do vaccines work?",
    "Correct the grammar: He don't has no time for to read.",
    "What should I consider before adopting a dog?",
    "Explain the proverb: a stitch in time saves nine.",
    "Write an SQL query that counts the orders of each customer.",
    "Tell me about the moon.",
)


def compare(
    full: Annotated[
        str, typer.Argument(metavar="FULL", help="The original: a run, a directory, a .gguf.")
    ],
    quant: Annotated[str, typer.Argument(metavar="QUANT", help="The copy.")],
    blind: Annotated[
        bool, typer.Option("--blind", help="Judge answers yourself, on a local page.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="One prompt a line, or .jsonl with prompt, turns or messages."
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where your choices are kept, and taken up again.",
            show_default="blind-QUANT-….jsonl, one for each pair of models",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 160,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest answers.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the sides and of sampling.")] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 0,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Without --blind: text to compare on.",
            show_default="Python's documentation",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Compare a model with its smaller copy: by numbers on a text, or blind, by you.

    With --blind, a page on this machine shows two answers to each prompt, sides drawn at random; 1 and 2
    choose, 0 says that you cannot tell. Each choice is kept at once: stop with Ctrl-C and go on with the
    same command. At the end it says how many times you preferred which, and whether chance explains it
    (exact binomial test). Without --blind: size, perplexity, divergence and speed of both.

    Examples:

    - `gristmill compare runs/pyhelp pyhelp-q4.gguf --blind`
    - `gristmill compare runs/pyhelp pyhelp-q4.gguf --blind --prompts questions.txt --port 8001`
    - `gristmill compare runs/pyhelp pyhelp-q4.gguf --text README.md --json`
    """
    from gristmill.formats import resolve

    for path in (full, quant):
        resolve(path)  # a mistyped name is told before anything is loaded
    if not blind:
        if prompts or answers:
            raise RequestError("--prompts and --answers are for a comparison by you: add --blind")
        _measure(full, quant, text, seed, as_json)
        return
    if text is not None:
        raise RequestError("--text is for a comparison by numbers: leave --blind out")
    _judge(
        full,
        quant,
        _read_prompts(prompts, full),
        answers,
        max_tokens,
        temperature,
        seed,
        port,
        as_json,
    )


def _measure(full: str, quant: str, text: Path | None, seed: int, as_json: bool) -> None:
    from gristmill.cli.quantize import show_price
    from gristmill.cli.texts import tokenizer_of
    from gristmill.evaluate.price import price
    from gristmill.formats import load_config, resolve
    from gristmill.quantize import PYTHON_DOCS, read_windows

    contexts = (load_config(resolve(path)).max_seq_len for path in (full, quant))
    held_out = read_windows(
        text or PYTHON_DOCS,
        tokenizer_of(full),
        count=64,
        length=min(512, *contexts),
        seed=seed,
        split="heldout",
        fewer=True,
    )
    with err.status("comparing") as status:
        found = price(
            full,
            quant,
            held_out,
            progress=lambda done, total, unit="", **_: status.update(f"{done:g}/{total:g} {unit}"),
        )
    if as_json:
        show_json(asdict(found) | {"bytes_ratio": found.bytes_ratio})
    else:
        show_price(found)


def _judge(
    full: str,
    quant: str,
    prompts: list[str],
    answers: Path | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    port: int,
    as_json: bool,
) -> None:
    with needing("serve", "starlette", "uvicorn"):
        from gristmill.serve import address_of, listen, serve
        from gristmill.serve.blind import build_blind_app
    from gristmill.evaluate.blind import Comparison

    file = answers or _answers_file(full, quant)
    comparison = Comparison(file, full, quant, prompts, seed)
    if not comparison.ended:
        listener = listen("127.0.0.1", port)
        with err.status("loading both models"):
            say = _answerer(full, quant, prompts, max_tokens, temperature, seed)
        app = build_blind_app(comparison, say, (full, quant))
        url = address_of(listener)

        def ready() -> None:
            left = len(prompts) - comparison.next
            err.print(
                f"Judge {counted(left, 'pair')} at {url}   Ctrl-C ends; choices are kept in {file}",
                markup=False,
                soft_wrap=True,
            )

        with suppress(KeyboardInterrupt):  # the normal end
            serve(app, listener, ready)
    _tell(comparison, full, quant, as_json)


def _answers_file(full: str, quant: str) -> Path:
    """Named after the copy, and of this pair alone: copies of one name lie in many places."""
    from gristmill.files import hash_json

    places = [str(Path(path).expanduser().resolve()) for path in (full, quant)]
    return Path(f"blind-{Path(places[1]).name}-{hash_json(places)[:8]}.jsonl")


def _tell(comparison: Comparison, full: str, quant: str, as_json: bool) -> None:
    """The result, if the comparison has ended; before that only how far it is."""
    from gristmill.evaluate.blind import sentence

    told: dict[str, Any] = {
        "full": full,
        "quant": quant,
        "answers": str(comparison.file),
        "prompts": len(comparison.prompts),
        "judged": comparison.judged,
        "ended": comparison.ended,
    }
    if comparison.ended:
        result = comparison.result()
        told |= asdict(result) | {"sentence": sentence(result, full, quant)}
    if as_json:
        show_json(told)
    elif comparison.ended:
        out.print(told["sentence"], markup=False, soft_wrap=True)
    else:
        out.print(
            f"{comparison.judged} judged, {len(comparison.prompts) - comparison.next} to go; the same command "
            "goes on from here",
            soft_wrap=True,
        )


def _answerer(
    full: str, quant: str, prompts: list[str], max_tokens: int, temperature: float, seed: int
) -> Callable[[str], tuple[str, str]]:
    """A prompt -> both answers, in each model's own chat format where it has one.

    Raises RequestError, before any is answered, for one of `prompts` that a model cannot take."""
    from gristmill.engine import Engine
    from gristmill.formats import Model
    from gristmill.lm import Request, SamplingParams

    engines = [Engine(Model.load(path, dtype="auto"), max_rows=1) for path in (full, quant)]
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)

    def asked(engine: Engine, prompt: str) -> Request:
        if engine.tokenizer.config.get("chat_template") is None:
            return Request(prompt, params)
        return engine.chat_request([{"role": "user", "content": prompt}], params)

    def say(prompt: str) -> tuple[str, str]:
        first, second = (e.generate([asked(e, prompt)])[0].checked().text for e in engines)
        return first, second

    for number, prompt in enumerate(prompts, 1):
        for path, engine in zip((full, quant), engines, strict=True):
            try:
                engine.prepare(asked(engine, prompt))
            except RequestError as error:
                raise RequestError(f"prompt {number} cannot be put to {path}: {error}") from None
    return say


def _read_prompts(file: Path | None, full: str) -> list[str]:
    """Those of a file; else the questions of the model's own run, else a general set."""
    from gristmill.cli.asking import read_file
    from gristmill.cli.source import example_questions

    if file is None:
        return list(example_questions(full, 40) or _PROMPTS)
    found = []
    # Only newlines part lines: JSON, and a prompt, may hold U+2028 and its like.
    lines = read_file(file, "--prompts").replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(
                _prompt(line, f"--prompts {file}, line {number}")
                if file.suffix == ".jsonl"
                else line
            )
    if not found:
        raise RequestError(f"--prompts {file} holds no prompts")
    return found


def _prompt(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{place} is not JSON: {error}") from None
    if isinstance(row, dict):
        turns, messages = row.get("turns"), row.get("messages")
        candidates = [row.get("prompt"), turns[0] if isinstance(turns, list) and turns else None]
        if isinstance(messages, list):
            asked = (
                m.get("content")
                for m in messages
                if isinstance(m, dict) and m.get("role") == "user"
            )
            candidates.append(next(asked, None))
        for text in candidates:
            if isinstance(text, str) and text.strip():
                return text
    raise RequestError(f'{place} has no "prompt", "turns" or "messages" with text')
