"""Entry point: the table of verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from gristmill.errors import GristmillError

# verb -> (module under gristmill.cli, attribute). A typer.Typer attribute is a group of sub-verbs.
VERBS: dict[str, tuple[str, str]] = {}


def build() -> typer.Typer:
    app = typer.Typer(
        name="gristmill",
        help="Take a language model through its whole life: raw text to a served, measured assistant.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    for verb, (module, attribute) in VERBS.items():
        command = getattr(import_module(f"gristmill.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=verb)
        else:
            app.command(verb)(command)
    return app


def main() -> None:
    """Run the command line. Exit code 0 done, 1 the work failed, 2 the request was wrong."""
    try:
        build()()
    except GristmillError as error:
        print(f"gristmill: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("gristmill: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
