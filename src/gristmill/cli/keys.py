"""`gristmill serve keys`: who may use a server, and how much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gristmill.cli.console import counted, err, out, show_json

app = typer.Typer(
    no_args_is_help=True,
    help="API keys of a server: make, list and remove them. A server that was started with "
    "`gristmill serve MODEL --api-key-file FILE` sees each change at its next request.",
)

FileOption = Annotated[Path, typer.Option("--file", help="The key file.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document.")]
DEFAULT = Path("keys.jsonl")


@app.command("add")
def add(
    name: NameArgument,
    file: FileOption = DEFAULT,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most so many requests a minute.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="At most so many tokens a minute, of prompts and answers."
        ),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most so many requests at once.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="May use this model or adapter alone; can be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once: the file holds only its hash.

    Examples:

    - `gristmill serve keys add alice`
    - `gristmill serve keys add bob --requests-per-minute 60 --tokens-per-minute 20000 --model pyhelp`
    """
    from gristmill.serve.keys import add_key

    secret = add_key(
        file,
        name,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent=concurrent,
        models=tuple(model) if model else None,
    )
    if as_json:
        show_json({"name": name, "key": secret, "file": str(file)})
        return
    out.print(secret, soft_wrap=True, markup=False)
    err.print(f"The key of {name} is in {file} as a hash; it is not shown again.", style="dim")


@app.command("list")
def list_keys(file: FileOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Show whose keys there are, and their limits.

    Examples:

    - `gristmill serve keys list`
    """
    from gristmill.serve.keys import Key, read_keys

    def told(key: Key) -> dict[str, Any]:
        return key.model_dump(mode="json", exclude_none=True, exclude={"hash"})

    keys = read_keys(file)
    if as_json:
        show_json({"keys": [told(key) for key in keys]})
        return
    for key in keys:
        limits = {
            "a minute": [
                counted(number, noun)
                for number, noun in (
                    (key.requests_per_minute, "request"),
                    (key.tokens_per_minute, "token"),
                )
                if number is not None
            ],
            "at once": [counted(key.concurrent, "request")] if key.concurrent else [],
        }
        shown = [f"{' and '.join(of)} {per}" for per, of in limits.items() if of]
        if key.models is not None:
            shown.append(f"only {', '.join(key.models)}")
        out.print(
            f"{key.name}   {key.created:%Y-%m-%d}   {'; '.join(shown) or 'no limits'}",
            soft_wrap=True,
        )
    if not keys:
        err.print(f"{file} holds no keys", style="dim")


@app.command("remove")
def remove(name: NameArgument, file: FileOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Remove a key; whoever has it is refused from their next request on.

    Examples:

    - `gristmill serve keys remove bob`
    """
    from gristmill.serve.keys import remove_key

    remove_key(file, name)
    if as_json:
        show_json({"removed": name, "file": str(file)})
    else:
        out.print(f"The key of {name} is removed from {file}.")
