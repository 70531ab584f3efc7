"""What can be said to `chat` rather than to the model: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gristmill.cli.talk import Talk
from gristmill.errors import RequestError, nearest

SETTINGS: dict[str, Callable[[str], object]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "min_tokens": int,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
}
_OPTIONAL = ("top_k", "seed")  # may be "none"


class Quit(Exception):
    """The conversation is over."""


class Again(Exception):
    """`question` is to be asked again."""

    def __init__(self, question: str) -> None:
        self.question = question


def obey(talk: Talk, line: str) -> str:
    """Do what the line says; what to tell the person. Raises RequestError, Quit or Again."""
    name, _, rest = line.partition(" ")
    name = {"/exit": "/quit", "/?": "/help"}.get(name, name)
    if name not in COMMANDS:
        raise RequestError(f"there is no command {name}.{nearest(name, COMMANDS)} /help lists them")
    what, _, _ = COMMANDS[name]
    return what(talk, rest.strip())


def _help(talk: Talk, rest: str) -> str:
    usages = {f"{name} {usage}".strip(): does for name, (_, usage, does) in COMMANDS.items()}
    width = max(map(len, usages)) + 2
    lines = [f"{usage:<{width}}{does}" for usage, does in usages.items()]
    lines += [
        "",
        'A line that ends with \\ goes on in the next; """ begins and ends a text of many lines.',
        "Ctrl-C stops an answer, Ctrl-D leaves.",
    ]
    return "\n".join(lines)


def _new(talk: Talk, rest: str) -> str:
    talk.new()
    return "A new conversation."


def _undo(talk: Talk, rest: str) -> str:
    question = talk.undo()
    if question is None:
        raise RequestError("nothing was said yet")
    return f"Forgotten: {question}"


def _retry(talk: Talk, rest: str) -> str:
    question = talk.retry()
    if question is None:
        raise RequestError("nothing was asked yet")
    raise Again(question)


def _system(talk: Talk, rest: str) -> str:
    talk.system = rest or None
    return (
        "The model is told this first, from the next question on."
        if rest
        else "It is told nothing."
    )


def _set(talk: Talk, rest: str) -> str:
    name, _, value = rest.replace("=", " ", 1).partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    if not name:
        return "\n".join(f"{n} {_shown(getattr(talk.params, n))}" for n in SETTINGS)
    if name not in SETTINGS:
        raise RequestError(
            f'there is no setting "{name}".{nearest(name, SETTINGS)} /set shows them all'
        )
    if not value:
        return f"{name} {_shown(getattr(talk.params, name))}"
    kind = SETTINGS[name]
    try:
        given = None if value == "none" and name in _OPTIONAL else kind(value)
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        also = " or none" if name in _OPTIONAL else ""
        raise RequestError(f'{name} must be {words}{also}, not "{value}"') from None
    talk.params = replace(talk.params, **{name: given})
    return f"{name} {_shown(given)}"


def _save(talk: Talk, rest: str) -> str:
    talk.save(_path(rest, "/save"))
    return f"Saved {len(talk.turns) // 2} questions with their answers in {rest}."


def _load(talk: Talk, rest: str) -> str:
    talk.load(_path(rest, "/load"))
    told = f" The model is told: {talk.system}" if talk.system else ""
    last = f" The last one: {talk.asked}" if talk.asked else ""
    return f"Loaded {len(talk.turns) // 2} questions with their answers.{told}{last}"


def _quit(talk: Talk, rest: str) -> str:
    raise Quit


def _path(rest: str, command: str) -> Path:
    if not rest:
        raise RequestError(f"name a file: {command} FILE")
    return Path(rest)


def _shown(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# name -> (what it does, usage of its arguments, for /help)
COMMANDS: dict[str, tuple[Callable[[Talk, str], str], str, str]] = {
    "/help": (_help, "", "this list"),
    "/new": (_new, "", "start over"),
    "/undo": (_undo, "", "forget the last question and its answer"),
    "/retry": (_retry, "", "ask the last question again"),
    "/system": (_system, "TEXT", "what the model is told first; without TEXT nothing"),
    "/set": (_set, "NAME VALUE", "such as /set temperature 0.7; without NAME shows all"),
    "/save": (_save, "FILE", "keep the conversation"),
    "/load": (_load, "FILE", "go on with a kept one"),
    "/quit": (_quit, "", "leave"),
}
