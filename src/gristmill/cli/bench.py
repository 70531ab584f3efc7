"""`gristmill bench`: how fast a model is here, and how near to what the memory allows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.asking import ActivationsOption, CacheOption, ModelArgument
from gristmill.cli.console import err, out, show_json
from gristmill.errors import RequestError

if TYPE_CHECKING:
    from gristmill.engine.measure import Point
    from gristmill.formats import Model


def bench(
    model: ModelArgument,
    rows: Annotated[
        str,
        typer.Option(
            metavar="N,N,…", help="How many requests at once, one measurement for each number."
        ),
    ] = "1,4,16,64",
    prompt_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of each request.", show_default="256, if they fit"),
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=3, help="Of each answer.", show_default="64, if they fit"),
    ] = None,
    max_seconds: Annotated[
        float,
        typer.Option(
            metavar="S", min=1, help="What is not measured by then is left out, or cut short."
        ),
    ] = 60.0,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="Of weights that are not quantized: float32, bfloat16, float16, or auto: as stored.",
        ),
    ] = "float32",
    activations: ActivationsOption = "int8",
    cache_dtype: CacheOption = "auto",
    runner: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What computes: native, torch, or auto: native where it can."
        ),
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Measure MODEL on this machine: reading prompts, writing answers, alone and many at once.

    Prompts are random tokens and nothing is cached between them. Decoding one answer is bound by
    memory: each token reads all weights, in the type that they were loaded as (it is told, beside the
    type that is stored). So the table says how many bytes a step reads, and what share of the
    machine's read bandwidth (measured, with all threads) that is. A model that fits the processor's
    cache can reach more than 100%.

    Examples:

    - `gristmill bench runs/pyhelp`
    - `gristmill bench llama.gguf --rows 1 --prompt-tokens 512 --new-tokens 128`
    """
    import time

    from gristmill.engine import Engine
    from gristmill.engine.measure import measure, read_bandwidth, weight_bytes, weight_types
    from gristmill.formats import Model

    counts = _counts(rows)
    if runner not in ("auto", "native", "torch"):
        raise RequestError(f"--runner must be auto, native or torch, not {runner}")
    loaded = Model.load(model, dtype=dtype, activations=activations)  # type: ignore[arg-type] - checked there
    context = loaded.config.max_seq_len
    new = new_tokens or min(64, max(3, context // 4))
    prompt = prompt_tokens or max(1, min(256, context - new))
    engine = Engine(
        loaded,
        max_rows=max(counts),
        cache_tokens=max(counts) * (prompt + new + 32),
        prefix_caching=False,
        cache_dtype=cache_dtype,  # type: ignore[arg-type] - checked there
        runner=runner,  # type: ignore[arg-type] - checked above
    )
    points: list[Point] = []
    left_out: list[int] = []
    with err.status("") as status:
        status.update("measuring the memory")
        bandwidth = read_bandwidth(loaded.device)
        status.update("warming up")
        measure(engine, 1, min(prompt, 32), 3)
        end = time.monotonic() + max_seconds
        for count in counts:
            if points and time.monotonic() > end:
                left_out.append(count)
                continue
            status.update(f"{count} at once")
            points.append(measure(engine, count, prompt, new, end))
    found: dict[str, Any] = {
        "model": str(loaded.path),
        "parameters": loaded.config.num_parameters,
        "runner": engine.runner_name,
        "cache_dtype": engine.cache_dtype,
        "threads": _threads(),
        "prompt_tokens": prompt,
        "new_tokens": new,
        "bandwidth_bytes_per_s": bandwidth,
        "weight_bytes": weight_bytes(engine),
        "weight_types": weight_types(loaded),
        "stored_types": _stored_types(loaded),
        "points": [
            asdict(p) | {"bandwidth_share": p.read_bytes_per_s and p.read_bytes_per_s / bandwidth}
            for p in points
        ],
        "left_out_rows": left_out,
    }
    show_json(found) if as_json else _show(found)


def _counts(rows: str) -> list[int]:
    try:
        counts = [int(part) for part in rows.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > 1024:
        raise RequestError(f'--rows must be numbers from 1 to 1024 such as "1,4,16", not "{rows}"')
    return counts


def _stored_types(model: Model) -> list[str]:
    """The types of the weights on disk by torch's names where it has them, the one with most bytes first."""
    from gristmill.engine.measure import main_types, weight_types
    from gristmill.formats import describe

    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    assert model.path is not None
    tensors = describe(model.path).tensors
    if any(
        t.type == "int32" for t in tensors
    ):  # a directory's codes, packed into words that say nothing
        return weight_types(model)
    return main_types((names.get(t.type, t.type), t.nbytes) for t in tensors)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _show(found: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    from gristmill.recipe.headline import amount

    out.print(
        f"{found['model']}: {amount(found['parameters'])} parameters, {found['runner']} runner, "
        f"{found['threads']} threads; {found['prompt_tokens']} prompt tokens and "
        f"{found['new_tokens']} new ones a request",
        markup=False,
        soft_wrap=True,
    )
    types, stored = (" and ".join(found[key]) for key in ("weight_types", "stored_types"))
    kind = types if types == stored else f"{types}, stored as {stored}"
    out.print(
        f"one token reads {found['weight_bytes'] / 1e6:,.1f} MB of weights ({kind}); this machine reads "
        f"{found['bandwidth_bytes_per_s'] / 1e9:,.1f} GB/s",
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in (
        "at\nonce",
        "prefill\ntokens/s",
        "first\ntoken ms",
        "decode\ntokens/s",
        "between\np50 ms",
        "tokens\np95 ms",
        "reads\nGB/s",
        "of what\nit can",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in found["points"]:
        decoded = point["decode_tokens_per_s"]
        row = [
            str(point["rows"]),
            f"{point['prefill_tokens_per_s']:,.0f}",
            f"{1e3 * point['first_token_s']:,.1f}",
        ]
        if decoded:
            row += [
                f"{decoded:,.1f}",
                f"{1e3 * point['between_p50_s']:.2f}",
                f"{1e3 * point['between_p95_s']:.2f}",
                f"{point['read_bytes_per_s'] / 1e9:,.2f}",
                f"{point['bandwidth_share']:.0%}",
            ]
        table.add_row(*row)
    out.print(table)
    if found["left_out_rows"]:
        rows = ", ".join(map(str, found["left_out_rows"]))
        out.print(
            f"left out for lack of time: {rows} at once; --max-seconds gives more", soft_wrap=True
        )
