"""Entry point: the table of verbs, and the one place where errors become exit codes.

Only the module of the verb that was asked for is imported, and none for `gristmill --help`: that
page is printed from the table, because importing typer, rich and every room would cost more than a
second.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import Any, NoReturn

from gristmill import __version__
from gristmill.errors import (
    GristmillError,
    RequestError,
    WorkError,
    nearest,
    out_of_memory,
    refused_by_system,
)

# verb -> (module under gristmill.cli, attribute, what it does in one line). The attribute is a
# command function, or a typer.Typer: a group of sub-verbs.
VERBS: dict[str, tuple[str, str, str]] = {
    "run": ("run", "run", "Run a recipe: raw text to a served, measured assistant, resumable."),
    "data": ("data", "app", "Build documents from sources; explain each one kept or dropped."),
    "tokenizer": ("tokenizer", "app", "Train, use and measure tokenizers."),
    "pretrain": ("line", "pretrain", "Run a recipe as far as the base model."),
    "sft": ("line", "sft", "Run a recipe as far as the chat model (supervised fine-tuning)."),
    "align": ("line", "align", "Run a recipe as far as the aligned model (DPO)."),
    "eval": ("eval", "evaluate", "Measure a model: bits per byte, the four-way test, preferences."),
    "inspect": (
        "inspect",
        "inspect",
        "Show what a model expects next, and how a text surprises it.",
    ),
    "generate": ("generate", "generate", "Continue a text."),
    "chat": ("chat", "chat", "Talk with a model in the terminal; --rag cites the documents."),
    "convert": (
        "convert",
        "convert",
        "Write a model in another format, and prove it says the same.",
    ),
    "quantize": (
        "quantize",
        "quantize",
        "Make a model smaller, and measure what that costs.",
    ),
    "compare": (
        "compare",
        "compare",
        "Compare a model with its copy: by numbers, or blind, by you.",
    ),
    "parity": (
        "parity",
        "parity",
        "Prove that every way to run a model says the same as the trainer.",
    ),
    "trace": (
        "trace",
        "trace",
        "Find where a text stands word for word in what a model was trained on.",
    ),
    "plan": (
        "planner",
        "plan",
        "Count what a model takes before it is paid for: memory, time, money.",
    ),
    "scaling": (
        "scaling",
        "app",
        "Train small models by a plan, fit a law, predict larger ones.",
    ),
    "doctor": (
        "doctor",
        "app",
        "Find what is wrong with a training; prove a layout of processes.",
    ),
    "bench": ("bench", "bench", "Measure a model's speed here, beside what the memory allows."),
    "serve": (
        "serve",
        "serve",
        "The APIs of OpenAI and Anthropic, and a web app, for your models.",
    ),
    "serve keys": ("keys", "app", "API keys of a server: make, list and remove them."),
    "report": (
        "report",
        "report",
        "Rebuild a run's report.html, or show where its results come from.",
    ),
}

_EXAMPLES = """\
Examples:
  gristmill run pyhelp --dry-run             what would run, and what it would cost
  gristmill run pyhelp --set size=tiny       the whole line in about a minute
  gristmill chat runs/pyhelp --rag           talk with the result; answers name their sources
  gristmill report runs/pyhelp --open        the page of a run

gristmill VERB --help explains a verb. Every verb takes --json."""


def overview() -> str:
    """The text of `gristmill --help`."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(
        f"  {bold}{verb:<{width}}{plain}{summary}" for verb, (_, _, summary) in VERBS.items()
    )
    return (
        "Usage: gristmill VERB [OPTIONS]\n\n"
        "Take a language model through its whole life: raw text to a served, measured assistant.\n\n"
        f"Verbs:\n{verbs}\n\n{_EXAMPLES}"
    )


def build(verb: str) -> Any:
    """The typer application that holds one verb."""
    import typer

    from gristmill.cli.help import PlainHelp

    app = typer.Typer(
        name="gristmill",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback()(lambda: None)  # keeps the verb's name in the usage line
    module, attribute, _ = VERBS[verb]
    command = getattr(import_module(f"gristmill.cli.{module}"), attribute)
    if isinstance(command, typer.Typer):
        for sub in command.registered_commands:
            sub.cls = PlainHelp
        app.add_typer(command, name=verb)
    else:
        app.command(verb, cls=PlainHelp)(command)
    return app


def dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(overview())
        return
    if arguments[0] == "--version":
        print(f"gristmill {__version__}")
        return
    if " ".join(arguments[:2]) in VERBS:  # a verb of two words
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    verb = arguments[0]
    if verb not in VERBS:
        what = "option" if verb.startswith("-") else "verb"
        raise RequestError(
            f'there is no {what} "{verb}".{nearest(verb, VERBS)} `gristmill --help` lists them.'
        )
    build(verb)(args=arguments, prog_name="gristmill")


def main() -> None:
    """Run the command line. Exit code 0 done, 1 the work failed, 2 the request was wrong."""
    arguments = sys.argv[1:]
    warnings.showwarning = _warn
    try:
        dispatch(arguments)
    except GristmillError as error:
        _fail(error, arguments)
    except KeyboardInterrupt:
        print("gristmill: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader left (`| head`); keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(refused_by_system(error), arguments)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        _fail(WorkError("this machine has not enough memory for it"), arguments)


def _warn(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """A warning for people: what it says, and not where in the program it was said."""
    print(f"gristmill: {message}", file=sys.stderr)


def _fail(error: GristmillError, arguments: list[str]) -> NoReturn:
    if "--json" in arguments:
        from gristmill.cli.console import show_json

        show_json({"error": str(error), "exit_code": error.exit_code})
    print(f"gristmill: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
