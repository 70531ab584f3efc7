"""`gristmill serve`: the HTTP APIs and the web app."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gristmill.cli.asking import MODEL_HELP, CacheOption, DraftOption
from gristmill.cli.console import err, out, show_json
from gristmill.errors import RequestError, needing


def serve(
    model: Annotated[
        list[str],
        typer.Argument(metavar="MODEL…", help=f"{MODEL_HELP} As NAME=MODEL it goes by that name."),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Serve a PEFT adapter on the first MODEL by this name; NAME=DIR@MODEL: on that one. Repeatable.",
        ),
    ] = None,
    draft: DraftOption = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. Beyond 127.0.0.1, anyone there may ask, unless there are keys."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 8000,
    rag: Annotated[
        bool, typer.Option("--rag/--no-rag", help="Offer answers from the run's index.")
    ] = True,
    index: Annotated[
        str | None, typer.Option(help="Offer answers from this index instead of the run's.")
    ] = None,
    cache_dtype: CacheOption = "auto",
    max_rows: Annotated[
        int, typer.Option(min=1, max=1024, help="How many answers of a model run at once.")
    ] = 64,
    replicas: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="How many processes of this machine answer, each with all models; more than 1 need Ray.",
        ),
    ] = 1,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where conversations, votes and responses are kept; left out: in the user's data directory.",
        ),
    ] = None,
    no_store: Annotated[
        bool, typer.Option("--no-store", help="Keep nothing: what was said is gone with the page.")
    ] = False,
    allow_adapters: Annotated[
        bool,
        typer.Option(
            "--allow-adapters", help="Let clients load adapters from this machine's disk."
        ),
    ] = False,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask for an API key of this file, which `gristmill serve keys add` makes.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Let web pages from there use the API, as https://chat.example.org; can be repeated.",
        ),
    ] = None,
    request_log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append a JSON line for each request; /dev/stderr shows them here.",
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="With what was asked and answered in them.")
    ] = False,
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send an OpenTelemetry span of each request to a collector, as http://localhost:4318.",
        ),
    ] = None,
    drain_seconds: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="How long answers may go on after Ctrl-C or SIGTERM."
        ),
    ] = 30,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, one JSON document with the address.")
    ] = False,
) -> None:
    """Serve models: the APIs of OpenAI (/v1) and Anthropic (/v1/messages), and a web app at /.

    Examples:

    - `gristmill serve runs/pyhelp`
    - `gristmill serve big=models/qwen3-8b.gguf small=runs/pyhelp --draft ngram`
    - `gristmill serve models/llama --adapter legal=adapters/legal`
    - `gristmill serve keys add alice --file keys.jsonl`, then
      `gristmill serve runs/pyhelp --host 0.0.0.0 --api-key-file keys.jsonl`
    - `gristmill serve models/llama --replicas 2`
    - `curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hi"}]}'`
    """
    with needing("serve", "starlette", "uvicorn", "prometheus_client"):
        from gristmill.serve import Operations, Store, address_of, build_app, front, listen
        from gristmill.serve import serve as run_server
        from gristmill.serve.front import Plan
        from gristmill.serve.keys import KeyFile
        from gristmill.serve.logs import line_writer
        from gristmill.serve.origins import is_loopback
        from gristmill.serve.store import default_path
        from gristmill.serve.tracing import exporting_to

    from gristmill.cli.offer import Offer, load

    listener = listen(host, port)  # before the model loads: a taken port is told at once
    address = listener.getsockname()[0]
    operations = Operations(
        keys=KeyFile(api_key_file) if api_key_file else None,
        loopback=is_loopback(address),
        cors_origins=cors_origin or (),
        write=line_writer(request_log) if request_log else None,
        log_prompts=log_prompts,
        tracing=exporting_to(otlp) if otlp else None,
    )
    kept = None if no_store else Store(store or default_path())
    load_all = partial(
        load,
        [Offer.named(given) for given in model],
        adapter or [],
        index=index,
        rag=rag,
        draft=draft,
        cache_dtype=cache_dtype,
        max_rows=max_rows,
    )
    url = address_of(listener)

    def ready() -> None:
        if as_json:
            told = {"url": url, "api": f"{url}/v1", "model": names[0], "models": names}
            show_json(told | {"retrieval": retrieval})
        else:
            what = ", ".join(f"[bold]{name}[/bold]" for name in names)
            verb = "is" if len(names) == 1 else "are"
            out.print(f"{what} {verb} at [bold]{url}[/bold]   API: {url}/v1   Ctrl-C ends.")
        if operations.keys is None and not operations.loopback:
            err.print(
                "Anyone who reaches this address can use it: there are no keys, see --api-key-file.",
                style="yellow",
            )

    with ExitStack() as stack:
        if replicas == 1:
            served = load_all()
            names, retrieval = [each.name for each in served], any(each.index for each in served)
            app = build_app(served, operations, kept, allow_adapters)
        else:
            if allow_adapters:
                raise RequestError(
                    "--allow-adapters is for one process, and --replicas makes several: name them by --adapter"
                )
            plan = Plan(load_all, kept.path if kept else None, api_key_file, log_prompts)
            them = stack.enter_context(front.replicas(plan, replicas))
            told = them.describe()
            names, retrieval = told[0].names, told[0].retrieval
            for name, line in told[0].engines.items():
                shown = f"{name}, {len(told)} replicas: {line}"
                err.print(shown, style="dim", markup=False, soft_wrap=True)
            app = front.build_front(them, operations)
        with suppress(KeyboardInterrupt):  # before it was ready
            run_server(app, listener, ready, drain_seconds)
    if kept is not None:
        kept.close()
    if operations.tracing is not None:
        operations.tracing.shutdown()
    err.print("stopped", style="dim")
