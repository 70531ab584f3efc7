"""`gristmill serve`: the HTTP API and the chat page."""

from __future__ import annotations

from typing import Annotated

import typer

from gristmill.cli.asking import CacheOption, ModelArgument
from gristmill.cli.console import err, out, show_json
from gristmill.errors import needing


def serve(
    model: ModelArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Beyond 127.0.0.1, anyone there may ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 8000,
    rag: Annotated[
        bool, typer.Option("--rag/--no-rag", help="Offer answers from the run's index.")
    ] = True,
    index: Annotated[
        str | None, typer.Option(help="Offer answers from this index instead of the run's.")
    ] = None,
    cache_dtype: CacheOption = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, one JSON document with the address.")
    ] = False,
) -> None:
    """Serve MODEL: an OpenAI-compatible API at /v1, and a page to chat at /.

    Examples:

    - `gristmill serve runs/pyhelp`
    - `gristmill serve runs/pyhelp --port 0 --no-rag`
    - `curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hi"}]}'`
    """
    with needing("serve", "starlette", "uvicorn"):
        from gristmill.serve import address_of, build_app, listen
        from gristmill.serve import serve as run_server

    from gristmill.cli.source import OF_RUN, example_questions, model_name, open_index, run_index
    from gristmill.engine import Engine
    from gristmill.formats import Model

    listener = listen(host, port)  # before the model loads: a taken port is told at once
    opened = None
    if index or (rag and run_index(model) is not None):
        opened = open_index(model, index or OF_RUN)
    name = model_name(model)
    engine = Engine(Model.load(model), cache_dtype=cache_dtype)  # type: ignore[arg-type] - checked there
    app = build_app(engine, name, opened, example_questions(model))
    url = address_of(listener)

    def ready() -> None:
        if as_json:
            show_json({"url": url, "api": f"{url}/v1", "model": name, "retrieval": bool(opened)})
        else:
            out.print(
                f"[bold]{name}[/bold] is at [bold]{url}[/bold]   API: {url}/v1   Ctrl-C ends."
            )
        if not host.startswith("127.") and host not in ("localhost", "::1"):
            err.print(
                "Anyone who reaches this address can use it: there are no keys.", style="yellow"
            )

    try:
        run_server(app, listener, ready)
    except KeyboardInterrupt:  # the normal end
        err.print("stopped", style="dim")
