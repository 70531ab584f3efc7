"""`gristmill quantize`: a model made smaller, with the price of it."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.asking import ModelArgument
from gristmill.cli.bar import Bar
from gristmill.cli.console import err, out, show_json
from gristmill.cli.texts import Texts
from gristmill.errors import RequestError, nearest

if TYPE_CHECKING:
    from gristmill.evaluate.price import Price
    from gristmill.quantize import QuantizeConfig

_METHODS = ("gptq", "awq", "rtn", "smoothquant", "int8", "gguf")
_GRIDS = ("gptq", "awq", "rtn")
_METHODS_OF = {
    "bits": _GRIDS,
    "group": _GRIDS,
    "symmetric": _GRIDS,
    "mse": ("gptq",),
    "format": (*_GRIDS, "smoothquant"),
    "type": ("gguf",),
    "importance": ("gguf",),
    "target-size": ("gguf",),
}
"""The methods that an option means something to."""
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_HELD_OUT_WINDOWS = 64


def quantize(
    model: ModelArgument,
    target: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="A directory, or NAME.gguf.")
    ],
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help="gptq, awq, rtn, smoothquant, int8 or gguf."),
    ] = "gptq",
    bits: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of gptq, awq and rtn: 4 or 8.", show_default="4"),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Inputs that share a scale; auto, or channel: one scale a row.",
            show_default="auto",
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric",
            help="Whether the grid's zero is in its middle.",
            show_default="yes; of awq no",
        ),
    ] = None,
    mse: Annotated[
        bool, typer.Option("--mse", help="Of gptq: search narrower ranges too (slower).")
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the directory: auto, compressed-tensors, gptq or awq.",
            show_default="awq's own, else compressed-tensors",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Of a .gguf: Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K, Q4_0, Q8_0, F16, BF16 or F32.",
            show_default="Q4_K_M",
        ),
    ] = None,
    importance: Annotated[
        bool,
        typer.Option(
            "--importance", help="Of a .gguf: weigh errors by what the text makes of each input."
        ),
    ] = False,
    imatrix: Annotated[bool, typer.Option("--imatrix", hidden=True)] = False,
    target_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of a .gguf: the best types for each tensor that fit, such as 4.2GB (instead of --type).",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text to look at: .txt, .jsonl (text or messages), or a directory of token shards.",
            show_default="the run's own, else Python's documentation",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Windows of calibration text.")
    ] = 128,
    length: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="Tokens of a window.", show_default="512, if they fit"
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Other text, to measure the price on.",
            show_default="the run's own, else Python's documentation",
        ),
    ] = None,
    price: Annotated[
        bool, typer.Option("--price/--no-price", help="Measure what it cost, into the card.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the choice of windows.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Make MODEL smaller: 4 or 8 bits a weight, and measure what that costs.

    gptq, awq and smoothquant look at calibration text; use some that is like what the model will see. rtn
    rounds to nearest; int8 keeps 8 bits and one scale a row; gguf writes llama.cpp's k-quants. Embeddings,
    head and norms stay as they are (but in a .gguf).

    The work goes block by block: a run that was killed goes on where it was when the same command is given
    again. At the end the price is measured on text that was not calibrated on, and written into the model
    card (README.md, or NAME.md beside a .gguf) and as JSON.

    Examples:

    - `gristmill quantize runs/pyhelp --method gptq -o pyhelp-gptq`
    - `gristmill quantize llama --method awq --calibration chats.jsonl -o llama-awq`
    - `gristmill quantize llama --method gguf --type Q5_K_M --importance -o llama.gguf`
    - `gristmill quantize llama --method gguf --target-size 4.2GB -o llama.gguf`
    """
    from gristmill.evaluate.price import check_unseen, write_card
    from gristmill.evaluate.price import price as measure_price
    from gristmill.formats import load_config, resolve
    from gristmill.quantize import CALIBRATED, check, quantize

    importance = importance or imatrix  # its name in llama.cpp
    config = _config(method, bits, group, symmetric, mse, format, kind, importance, target_size)
    place = resolve(model)
    context = load_config(place).max_seq_len
    windows = min(512, context) if length is None else length
    if windows > context:
        raise RequestError(f"--length {windows} is beyond the model's context of {context} tokens")
    wants_text = method in CALIBRATED or importance or config.target_bytes is not None
    loaded = check(place, target, config)
    texts = Texts(model, windows, seed)
    wanted = [(calibration, "train", samples, False)] if wants_text else []
    if price:
        wanted.append((held_out, "heldout", _HELD_OUT_WINDOWS, True))
    # What is named comes first: the notice of what stands in for the other must not precede a refusal.
    wanted.sort(key=lambda text: text[0] is None)
    read = {text[1]: texts.read(*text) for text in wanted}
    seen, unseen = read.get("train"), read.get("heldout")
    if unseen is not None:
        check_unseen(unseen, seen)
    if calibration is not None and not wants_text:
        unless = " without --importance or --target-size" if method == "gguf" else ""
        _say(f"{method} looks at no text{unless}: --calibration is not used")
    with Bar() as view:
        view.begin("quantize")
        made = quantize(loaded, target, config, seen, progress=view.progress, say=_say)
        del loaded  # measuring reads both models anew
        if unseen is not None:
            view.begin("measure")
            found = measure_price(
                place, made.target, unseen, made=made.facts, progress=view.progress
            )
            files = write_card(made.target, found)
    shown: dict[str, Any] = {"target": str(made.target), "made": made.facts, "layers": made.layers}
    if unseen is not None:
        shown |= {"price": asdict(found) | {"bytes_ratio": found.bytes_ratio}}
        shown |= {"card": str(files[0]), "numbers": str(files[1])}
    if as_json:
        show_json(shown)
        return
    out.print(f"{made.target}: {_facts(made.facts)}", markup=False, soft_wrap=True)
    if unseen is not None:
        show_price(found)
        out.print(f"the price is in {files[0]} and {files[1]}", markup=False, soft_wrap=True)
    out.print(
        f'Try it: gristmill generate {target} "Once upon a time"', markup=False, soft_wrap=True
    )


def show_price(price: Price) -> None:
    """The price tag as a table, with what its numbers are of."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gristmill.evaluate.price import footnotes, rows

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right", no_wrap=True)
    for what, before, after in rows(price):
        table.add_row(Text(what), Text(before), Text(after))
    out.print(table)
    for sentence in footnotes(price):
        out.print(sentence, style="dim", markup=False, soft_wrap=True)


def _config(
    method: str,
    bits: int | None,
    group: str | None,
    symmetric: bool | None,
    mse: bool,
    format: str | None,
    kind: str | None,
    importance: bool,
    target_size: str | None,
) -> QuantizeConfig:
    """The settings. Raises RequestError, naming the option, for what there is not, and what the method ignores."""
    from gristmill.formats.gguf import FILE_TYPES, mixture_name
    from gristmill.quantize import FORMATS, QuantizeConfig

    if method not in _METHODS:
        raise RequestError(
            f"--method must be {', '.join(_METHODS)}, not {method}.{nearest(method, _METHODS)}"
        )
    given = {
        "bits": bits,
        "group": group,
        "symmetric": symmetric,
        "mse": mse or None,
        "format": format,
        "type": kind,
        "importance": importance or None,
        "target-size": target_size,
    }
    for option, value in given.items():
        if value is not None and method not in _METHODS_OF[option]:
            methods = " or ".join(_METHODS_OF[option])
            raise RequestError(f"--{option} is for --method {methods}, not {method}")
    if kind is not None and target_size is not None:
        raise RequestError("--target-size chooses the types itself: leave --type out")
    if bits not in (None, 4, 8):
        raise RequestError(f"--bits must be 4 or 8, not {bits}")
    if format not in (None, *FORMATS):
        raise RequestError(
            f"--format must be {', '.join(FORMATS)}, not {format}.{nearest(format, FORMATS)}"
        )
    if group not in (None, "auto", "channel") and not group.isdecimal():
        raise RequestError(f"--group must be a number, auto or channel, not {group}")
    try:
        mixture = None if kind is None else mixture_name(kind)
    except RequestError:
        raise RequestError(
            f"--type must be {', '.join(FILE_TYPES)}, not {kind}.{nearest(str(kind).upper(), FILE_TYPES)}"
        ) from None
    settings: dict[str, Any] = {
        "bits": bits,
        "group": int(group) if group and group.isdecimal() else group,
        "symmetric": symmetric,
        "format": format,
        "type": mixture,
        "target_bytes": None if target_size is None else _bytes(target_size),
    }
    chosen = {name: value for name, value in settings.items() if value is not None}
    return QuantizeConfig(method=method, mse=mse, importance=importance, **chosen)  # type: ignore[arg-type]


def _bytes(size: str) -> int:
    found = _SIZE.fullmatch(size.strip())
    if not found:
        raise RequestError(f"--target-size must be a size such as 4.2GB or 900MiB, not {size}")
    step = 1024 if found[3] else 1000
    return int(float(found[1]) * step ** " KMGT".index(found[2].upper() or " "))


def _facts(facts: dict[str, Any]) -> str:
    told = {k: v for k, v in facts.items() if k in ("method", "bits", "group", "format", "type")}
    shown = [f"{name} {value}" if name != "method" else str(value) for name, value in told.items()]
    return f"{', '.join(shown)}; {facts['seconds']:,.0f} s"


def _say(line: str) -> None:
    err.print(line, style="yellow", markup=False, soft_wrap=True)
