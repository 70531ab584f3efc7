"""`gristmill plan`: what a model takes, to train and to serve, before anything is paid for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.asking import MODEL_HELP
from gristmill.cli.console import err, show_json
from gristmill.errors import RequestError, WorkError

if TYPE_CHECKING:
    from gristmill.plan import Device, Preset

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([KMBGT]?)", re.IGNORECASE)
_TOKENS_PER_PARAMETER = 20  # Chinchilla's, where the model does not say what it was trained on


def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help=f"A preset, a config.json, or: {MODEL_HELP} Without one, presets and devices are listed.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="To train on, such as 15T or 300B.",
            show_default="what it was trained on, else 20 a parameter",
        ),
    ] = None,
    devices: Annotated[
        str,
        typer.Option(metavar="NAME:N", help="Such as h100:1024; here: this machine, measured."),
    ] = "h100:8",
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Tokens of a row.",
            show_default="its run's, else the model's up to 8,192",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Tokens of a training step, such as 4M.",
            show_default="grown with --tokens",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="bfloat16, float32, fp8, mixed (Megatron's) or pure-bfloat16.",
            show_default="bfloat16, where it is faster",
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="adamw, muon or adamw-8bit.",
            show_default="its run's, else adamw",
        ),
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of peak, in steady training.",
            show_default="0.40, or the best layout's if that is less",
        ),
    ] = None,
    availability: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the time that trains.")
    ] = 0.90,
    price: Annotated[
        float | None,
        typer.Option(metavar="USD", help="Of a device-hour.", show_default="the device table's"),
    ] = None,
    pue: Annotated[
        float, typer.Option(metavar="RATIO", help="A data centre's power over its machines'.")
    ] = 1.2,
    serve: Annotated[
        bool, typer.Option("--serve", help="Plan serving instead of training.")
    ] = False,
    rows: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of --serve: sequences at once.")
    ] = 32,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FORM", help="Of --serve: such as int4-g128 or q4_k_m.", show_default="all"
        ),
    ] = None,
    cache: Annotated[
        str,
        typer.Option("--cache-dtype", metavar="TYPE", help="Of --serve: float16, int8, int4, …"),
    ] = "float16",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with sliders too.")
    ] = None,
    preset_file: Annotated[
        Path | None,
        typer.Option("--presets", metavar="FILE", help="Your own presets, as presets.toml."),
    ] = None,
    device_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your own devices, as devices.toml."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Count what MODEL takes before it is paid for: parameters, FLOPs, memory, time, energy, money.

    Training: the layouts that fit so many devices, fastest first, with the memory of the device that needs most, and
    what the run costs; exit code 1 where none fits. With --serve: which forms of the weights fit, and how fast memory
    and arithmetic let them be.
    No weight is read, no network asked. Every assumption is printed beside what follows from it.

    Examples:

    - `gristmill plan`
    - `gristmill plan llama-3-70b --tokens 15T --devices h100:1024`
    - `gristmill plan llama-3-70b --serve --devices h100:4 --context 32768`
    - `gristmill plan runs/pyhelp --serve --devices here`
    - `gristmill plan qwen3-30b-a3b --html plan.html`
    """
    from gristmill import plan as planner
    from gristmill.cli import planner_view as view

    if model is None:
        view.show_lists(planner.presets(preset_file), planner.devices(device_file), as_json)
        return
    if html is not None:
        _check_place(html)
    preset = planner.model(model, preset_file)
    machine, number = _devices(devices, device_file)
    limit = preset.config.max_seq_len
    usual = min(limit, 8192) if serve or preset.context is None else preset.context
    length = usual if context is None else context
    if length > limit and preset.config.positions == "learned":
        raise RequestError(
            f"--context {length:,} is beyond the model's {limit:,} learned positions"
        )
    assumed = planner.Assumptions(
        mfu=0.4 if mfu is None else mfu,
        availability=availability,
        pue=pue,
        price=machine.price if price is None else price,
    )
    if precision is None:
        faster = machine.peak("bfloat16") > machine.peak("float32")
        precision = "bfloat16" if faster else "float32"
    training = planner.Training(
        precision=precision,
        optimizer=optimizer or preset.optimizer or "adamw",
        context=length,
        kernels=machine.kernels,
    )
    total, whence = _tokens(tokens, preset)
    shown: dict[str, Any] = {"model": planner.model_sheet(preset, length)}
    if serve:
        shown["serving"] = planner.serving_sheet(
            preset,
            devices=number,
            machine=machine,
            context=length,
            rows=rows,
            cache=cache,
            price=assumed.price,
            weights=weights,
            stored=_stored(model, preset),
        )
    else:
        batch_tokens = planner.usual_batch(total, number, length)
        if batch is not None:
            batch_tokens = round(_count(batch, "--batch"))
        with err.status(f"layouts of {number:,} devices"):
            shown["training"] = planner.training_sheet(
                preset,
                tokens=total,
                devices=number,
                machine=machine,
                training=training,
                batch_tokens=batch_tokens,
                assumed=assumed,
                mfu=mfu,
            )
        shown["training"]["tokens_are"] = whence
    if html is not None:
        shown["page"] = str(html)
        _write_page(html, preset, machine, number, total, training, assumed)
    if as_json:
        show_json(shown)
    else:
        view.show(shown)
    if not serve and shown["training"]["cost"] is None:
        raise typer.Exit(WorkError.exit_code)


def _devices(given: str, file: Path | None) -> tuple[Device, int]:
    """ "h100:8" as the device and how many. Raises RequestError."""
    from gristmill.plan import device

    name, colon, number = given.partition(":")
    if colon and not (number.isdecimal() and int(number) > 0):
        raise RequestError(f"--devices is a name and a number, such as h100:8, not {given}")
    return device(name, file), int(number) if colon else 1


def _tokens(given: str | None, preset: Preset) -> tuple[float, str]:
    """(tokens to train on, why so many)"""
    from gristmill.plan import counts

    if given is not None:
        return _count(given, "--tokens"), "as asked"
    if preset.tokens is not None:
        return preset.tokens, "what it was trained on"
    active = counts(preset.config, preset.extra_per_layer).active
    return float(_TOKENS_PER_PARAMETER * active), f"{_TOKENS_PER_PARAMETER} a parameter"


def _count(given: str, option: str) -> float:
    found = _COUNT.fullmatch(given.strip().replace(",", ""))
    number = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if number < 1:
        raise RequestError(f"{option} must be a number such as 15T, 300B or 4M, not {given}")
    return number


def _stored(model: str, preset: Preset) -> float | None:
    """Bytes of the weights on disk, where MODEL names some."""
    from gristmill.formats import describe, resolve

    if preset.name != model or not Path(model).expanduser().exists():
        return None
    place = resolve(model)
    try:
        return float(sum(tensor.nbytes for tensor in describe(place).tensors))
    except RequestError:  # a directory with a config.json alone can be planned for
        return None


def _check_place(html: Path) -> None:
    """Raises RequestError where no page can be written, before anything is searched."""
    if html.is_dir():
        raise RequestError(f"--html {html} is a directory; name a file in it")
    if not html.parent.is_dir():
        raise RequestError(f"--html {html}: no such folder as {html.parent}; make it first")


def _write_page(
    target: Path,
    preset: Preset,
    machine: Device,
    number: int,
    tokens: float,
    training: Any,
    assumed: Any,
) -> None:
    from gristmill.files import write_text
    from gristmill.plan import explorable

    with err.status("the page's layouts") as status:
        page = explorable(
            preset,
            machine,
            devices=number,
            tokens=tokens,
            training=training,
            assumed=assumed,
            progress=lambda done, of: status.update(f"the page's layouts: {done} of {of}"),
        )
    write_text(target, page)
