"""The plan as a page whose numbers move with sliders. One file that loads nothing from anywhere.

What is searched (layouts, their memory) is computed here for each number of devices; page.js does the arithmetic of
`cost` and `inference` over it, with the same formulas and constants, which come in the page's data.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gristmill.plan.cost import Assumptions
from gristmill.plan.counts import counts, flops_per_token
from gristmill.plan.inference import CACHES, REACHED, WEIGHTS, cache_bytes_per_token, weight_bytes
from gristmill.plan.layouts import best_layouts
from gristmill.plan.presets import Device, Preset
from gristmill.plan.settings import PRECISIONS, Training
from gristmill.plan.sheet import USUAL_MFU, layout_sheet, usual_batch
from gristmill.report import Html, join, tag

_LARGEST = 32_768


def explorable(
    preset: Preset,
    machine: Device,
    *,
    devices: int,
    tokens: float,
    training: Training,
    assumed: Assumptions,
    progress: Any = lambda done, of: None,
) -> str:
    """A whole HTML document. progress(done, of) is called for each number of devices that is searched."""
    data = page_data(preset, machine, devices, tokens, training, assumed, progress)
    # "</" would end the script.
    held = json.dumps(data).replace("</", "<\\/")
    script = f"const DATA = {held};\n{_read('page.js')}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = f"Plan: {preset.title or preset.name}"
    head = join(
        (
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            tag("title", title),
            tag("style", Html(_read("page.css"))),
        )
    )
    main = tag("main", _facts(preset, machine), _training(data), _serving(data))
    foot = tag(
        "footer",
        f"Training takes 3 x the forward FLOPs of {data['context']:,}-token rows, attention counted whole. Memory is "
        "of the device that needs most. Serving is a roofline of which "
        f"{REACHED:.0%} is reached. Prices and MFU are assumptions: move them.",
    )
    body = tag("body", tag("h1", title), main, foot, tag("script", Html(script)))
    return f"<!doctype html>\n{tag('html', tag('head', head), body, lang='en')}\n"


def page_data(
    preset: Preset,
    machine: Device,
    devices: int,
    tokens: float,
    training: Training,
    assumed: Assumptions,
    progress: Any,
) -> dict[str, Any]:
    """What page.js computes with. SI units."""
    config, extra = preset.config, preset.extra_per_layer
    held = counts(config, extra)
    training = replace(training, extra=extra)
    numbers = sorted({devices, *_around(devices)})
    layouts = []
    for done, number in enumerate(numbers):
        progress(done, len(numbers))
        batch = usual_batch(tokens, number, training.context)
        found = best_layouts(config, number, machine, batch_tokens=batch, training=training, most=1)
        best = layout_sheet(found[0]) if found else None
        layouts.append({"devices": number, "batch_tokens": batch, "best": best})
    precision = PRECISIONS[training.precision].computes
    one = flops_per_token(config, 1, extra=extra)
    windows = [
        config.sliding_window if config.layer_type(layer) == "sliding_attention" else None
        for layer in range(config.num_layers)
    ]
    return {
        "context": training.context,
        "context_limit": config.max_seq_len,
        "tokens": tokens,
        "start": numbers.index(devices),
        "layouts": layouts,
        "training_flops_per_token": flops_per_token(config, training.context, extra=extra).training,
        "peak": machine.peak(precision),
        "memory": machine.memory,
        "bandwidth": machine.bandwidth,
        "power": machine.power,
        "usual_mfu": USUAL_MFU,
        "assumed": {
            "availability": assumed.availability,
            "pue": assumed.pue,
            "price": assumed.price,
        },
        "reached": REACHED,
        "matrix_flops": one.matrices,
        "attention_flops": one.attention
        / config.num_layers,  # of a layer, for each token that is seen
        "windows": windows,
        "table_bytes_unread": held.embedding
        - (config.vocab_size * config.hidden_size if config.tie_embeddings else 0),
        "experts": held.experts,
        "missed": 1 - config.moe.experts_per_token / config.moe.num_experts if config.moe else 0,
        "weights": {
            name: {
                "bytes": weight_bytes(config, name, extra),
                "bits": bits,
                "ends": ends,
                "peak": machine.peak(computes),
            }
            for name, (bits, ends, computes) in WEIGHTS.items()
        },
        "caches": {name: cache_bytes_per_token(config, name) for name in CACHES},
    }


def _around(devices: int) -> list[int]:
    """Numbers of devices to slide over: halves and doubles, four each way."""
    numbers = [devices * 2.0**step for step in range(-4, 5)]
    return [int(n) for n in numbers if n == int(n) and 1 <= n <= _LARGEST]


def _facts(preset: Preset, machine: Device) -> Html:
    held = counts(preset.config, preset.extra_per_layer)
    said = f"{held.total / 1e9:,.3f} billion parameters, {held.active / 1e9:,.3f} met by a token; {machine.title}"
    return tag("p", said, class_="facts")


def _training(data: dict[str, Any]) -> Html:
    sliders = (
        _slider("tokens", "Training tokens", 0, 1000, 500),
        _slider("devices", "Devices", 0, len(data["layouts"]) - 1, data["start"]),
        _slider("mfu", "MFU", 1, 80, 40),
        _slider("availability", "Availability", 50, 100, 90),
        _slider("price", "US$ a device-hour", 0, 1000, 0),
    )
    return tag(
        "section",
        tag("h2", "Training"),
        tag("div", *sliders, class_="sliders"),
        _outputs(
            "flops", "days", "device-hours", "energy", "money", "layout", "modelled", "memory-total"
        ),
        tag("div", id="memory-bar", class_="bar", role="img"),
        tag("ul", id="memory-parts"),
    )


def _serving(data: dict[str, Any]) -> Html:
    sliders = (
        _choice("weights", "Weights", list(data["weights"]), "bfloat16"),
        _choice("cache", "Keys and values", list(data["caches"]), "float16"),
        _slider("context", "Context, tokens", 0, 1000, 600),
        _slider("rows", "Rows at once", 0, 12, 0),
        _slider("serving-devices", "Devices of a copy", 0, 6, 0),
    )
    return tag(
        "section",
        tag("h2", "Serving"),
        tag("div", *sliders, class_="sliders"),
        _outputs("needs", "fits", "decode", "row-speed", "prefill", "price-out", "price-in"),
    )


def _slider(name: str, label: str, low: int, high: int, at: int) -> Html:
    shown = tag("output", id=f"{name}-shown", for_=name)
    slider = tag("input", id=name, type="range", min=low, max=high, step=1, value=at)
    return tag("div", tag("label", label, for_=name), shown, slider)


def _choice(name: str, label: str, options: list[str], chosen: str) -> Html:
    listed = (
        tag("option", o, value=o, selected="selected" if o == chosen else None) for o in options
    )
    return tag("div", tag("label", label, for_=name), tag("select", *listed, id=name))


_LABELS = {
    "flops": "FLOPs",
    "days": "Days",
    "device-hours": "Device-hours",
    "energy": "Energy",
    "money": "Money",
    "layout": "Best layout",
    "modelled": "MFU of that layout",
    "memory-total": "Memory of a device",
    "needs": "Memory needed",
    "fits": "Fits",
    "decode": "Decode",
    "row-speed": "Each row",
    "prefill": "Prefill",
    "price-out": "A million tokens written",
    "price-in": "A million tokens read",
}


def _outputs(*names: str) -> Html:
    pairs = (tag("div", tag("dt", _LABELS[name]), tag("dd", id=name)) for name in names)
    return tag("dl", *pairs, aria_live="polite")


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
