"""What `gristmill plan` prints: tables that fit 80 columns, assumptions beside what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from gristmill.cli.console import counted, out, show_json

if TYPE_CHECKING:
    from gristmill.plan import Device, Preset


def show_lists(presets: Mapping[str, Preset], devices: Mapping[str, Device], as_json: bool) -> None:
    """All presets and devices."""
    from gristmill.plan import counts

    sizes = {name: counts(p.config, p.extra_per_layer) for name, p in presets.items()}
    if as_json:
        show_json(
            {
                "presets": {n: {"total": c.total, "active": c.active} for n, c in sizes.items()},
                "devices": {n: d.title for n, d in devices.items()},
            }
        )
        return
    rows = []
    for name, held in sizes.items():
        active = amount(held.active) if held.active < held.total else ""
        context = f"{presets[name].config.max_seq_len:,}"
        rows.append((name, amount(held.total), active, context))
    _table(("preset", "parameters", "active", "context"), rows)
    machines = [
        (
            name,
            f"{d.memory / 2**30:,.0f} GiB",
            f"{d.bandwidth / 1e9:,.0f} GB/s",
            f"{d.peak('bfloat16') / 1e12:,.{0 if d.peak('bfloat16') >= 1e13 else 1}f} TF",
            f"${d.price:.2f}/h" if d.price else "",
        )
        for name, d in devices.items()
    ]
    _table(("device", "memory", "bandwidth", "bf16", "price"), machines)
    _say("gristmill plan PRESET --devices NAME:N; add --serve for serving.")


def show(shown: Mapping[str, Any]) -> None:
    _model(shown["model"])
    if "training" in shown:
        _training(shown["training"])
    if "serving" in shown:
        _serving(shown["serving"])
    if "page" in shown:
        _say(f"The page is {shown['page']}")


def _model(model: Mapping[str, Any]) -> None:
    held, flops = model["parameters"], model["flops_per_token"]
    title = model["title"] or model["name"]
    out.print(Text(title, style="bold"), soft_wrap=True)
    if model["source"] or model["note"]:
        _say("; ".join(part for part in (model["source"], model["note"]) if part), dim=True)
    rows = [("parameters", f"{held['total']:,}", amount(held["total"]))]
    if held["active"] < held["total"]:
        rows.append(("that a token meets", f"{held['active']:,}", amount(held["active"])))
    for name in ("embedding", "head", "attention", "mlp", "experts", "router", "vectors"):
        if held[name]:
            share = f"{held[name] / held['total']:.1%}"
            rows.append((f"  {_PARTS.get(name, name)}", f"{held[name]:,}", share))
    _table(("", "exact", ""), rows)
    context = model["context"]
    attention = flops["attention"] / flops["forward"]
    causal = flops["attention_causal"] / flops["attention"]
    _say(
        f"A token of {context:,} in a row: {si(flops['forward'], 'FLOPs')} forward, "
        f"{si(flops['training'], 'FLOPs')} in training (6N is {si(flops['six_n'], 'FLOPs')}), {attention:.1%} of it "
        f"attention. Attention is counted whole, as MFU is; a causal kernel does {causal:.0%} of it.",
        dim=True,
    )


_PARTS = {"vectors": "norms, biases", "mlp": "MLP"}


def _training(plan: Mapping[str, Any]) -> None:
    device, devices = plan["device"], plan["devices"]
    settings = plan["training"]
    out.print()
    out.print(Text(f"Training on {devices:,} x {device['title']}", style="bold"), soft_wrap=True)
    _say(
        f"{amount(plan['tokens'])} tokens ({plan['tokens_are']}), {amount(plan['batch_tokens'])} in a step, "
        f"{settings['precision']}, {settings['optimizer']}",
        dim=True,
    )
    if plan["does_not_fit"]:
        out.print(Text(f"It does not fit: {plan['does_not_fit']}.", style="red"))
    elif not plan["layouts"]:
        out.print(
            Text(
                "No layout divides this model, batch and number of devices; change --batch.",
                style="red",
            ),
            soft_wrap=True,
        )
    rows = []
    for one in plan["layouts"]:
        m = one["memory"]
        kept = m["weights"] + m["gradients"] + m["optimizer"]
        rows.append(
            (
                one["words"],
                f"{one['recompute']}, {one['micro_batch_rows']}",
                *(
                    size(part).removesuffix(" GB")  # told below the table
                    for part in (
                        m["total"],
                        kept,
                        m["activations"] + m["logits"],
                        m["buffers"],
                    )
                ),
                duration(one["step_seconds"]),
                f"{one['mfu']:.0%}",
            )
        )
    if rows:
        _table(
            ("layout", "recomp, rows", "total", "states", "acts", "buf", "step", "MFU"),
            rows,
            fold=0,
        )
        _say(
            "Memory of the device that needs most, GB where no unit stands: states are weights, gradients and "
            "optimizer, acts are activations and logits. Step and MFU are modelled, at best: products reach "
            f"{plan['assumptions']['efficiency']:.0%} of peak, bubbles and traffic that nothing hides are waited for; "
            "launches, which small models wait for, are not modelled. MFU counts attention whole and a causal kernel "
            f"does less: it may read up to {plan['assumptions']['most_mfu']:.0%} here.",
            dim=True,
        )
    if plan["not_split"] and plan["devices"] > 1:
        _say(f"Our trainer's limits: {'; '.join(plan['not_split'])}.", dim=True)
    if plan["cost"] is not None:
        _cost(plan)


def _cost(plan: Mapping[str, Any]) -> None:
    cost, assumed, device = plan["cost"], plan["assumptions"], plan["device"]
    priced = assumed["price"] is not None
    _table(
        ("", ""),
        [
            ("FLOPs", f"{cost['flops']:.3g} (6ND: {plan['flops_6nd']:.3g})"),
            ("time", duration(cost["hours"] * 3600)),
            ("device-hours", f"{cost['device_hours']:,.{0 if cost['device_hours'] >= 100 else 2}f}"),
            ("energy", si(cost["kwh"] * 1e3, "Wh")),
            ("money", money(cost["money"]) if priced else "no price is known: --price"),
        ],
    )  # fmt: skip
    _say(
        f"Assumed: MFU {assumed['mfu']:.0%} ({assumed['mfu_is']}), {assumed['availability']:.0%} of the time training, "
        + (f"${assumed['price']:.2f} a device-hour, " if priced else "")
        + f"{device['power']:,.0f} W a device, PUE {assumed['pue']}.",
        dim=True,
    )
    if told := plan["published"]:
        _say(
            f"Published: {told['device_hours']:,.0f} hours of {told['device']} for {amount(told['tokens'])} tokens, "
            f"which is {told['utilization']:.0%} of peak over all (6ND; restarts and all else in it).",
            dim=True,
        )


def _serving(plan: Mapping[str, Any]) -> None:
    device, rows = plan["device"], plan["rows"]
    out.print()
    title = f"Serving on {plan['devices']:,} x {device['title']}"
    out.print(Text(title, style="bold"), soft_wrap=True)
    if plan["stored_bytes"]:
        _say(f"The weights on disk are {size(plan['stored_bytes'])}.")
    table, priced = [], plan["price_per_device_hour"] is not None
    for one in plan["weights"]:
        fits = one["rows_that_fit"]
        table.append(
            (
                one["weights"],
                size(one["bytes"]),
                f"{fits:,}" if fits else "does not fit",
                *([f"{one[k]:,.0f}" for k in ("decode_alone", "decode", "prefill")] if fits else [""] * 3),
                *([f"{one['price_per_million_out']:.2f}" if fits else ""] if priced else []),
            )
        )  # fmt: skip
    heads = ("weights", "bytes", "rows fit", "1 row", counted(rows, "row"), "prefill")
    _table((*heads, "$/M out") if priced else heads, table)
    _say(
        f"Rows of {plan['context']:,} tokens with a {plan['cache']} cache. Tokens/s of decode (1 row, "
        f"{counted(rows, 'row')} together) and of prefill: a roofline of which {plan['reached']:.0%} is reached"
        + (
            f"; ${plan['price_per_device_hour']:.2f} a device-hour."
            if priced
            else ". No price is known: --price."
        ),
        dim=True,
    )
    kept = [
        (f"{one['context']:,}", *map(size, one["bytes"].values())) for one in plan["cache_bytes"]
    ]
    heads = [f"{n} row{'s' if n != '1' else ''}" for n in plan["cache_bytes"][0]["bytes"]]
    _table((f"{plan['cache']} cache, context", *heads), kept)
    ways = ", ".join(
        f"{one['speedup']:.2f}x at {one['acceptance']:.0%} of {one['drafts']}"
        for one in plan["speculative"]
    )
    _say(
        f"Drafts (kept share of so many, each at {plan['draft_cost']:.0%} of a step): {ways}, while decode waits for "
        "memory.",
        dim=True,
    )


def amount(value: float) -> str:
    """'1.24T', '8.03B', '125M' of parameters or tokens; three digits."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}"


def size(held: float) -> str:
    """'54.3 GB', '196 MB', '0.3 MB'."""
    if held >= 1e9:
        return f"{held / 1e9:,.1f} GB"
    return f"{held / 1e6:,.{0 if held >= 1e7 else 1}f} MB"


def money(dollars: float) -> str:
    """'$1,693,672', '$4.35', 'under a cent'."""
    if 0 < dollars < 0.005:
        return "under a cent"
    return f"${dollars:,.{0 if dollars >= 100 else 2}f}"


def si(value: float, unit: str) -> str:
    """'482 GFLOPs', '6.59 GWh'."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:,.3g} {letter}{unit}"
    return f"{value:.3g} {unit}"


def duration(seconds: float) -> str:
    """'9.6 ms', '4.2 s', '29 min', '319 days'."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    for least, size, unit in _TIMES:
        if seconds >= least:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.3g} s"


_YEAR, _DAY = 365.25 * 86_400, 86_400
_TIMES = (
    (2 * _YEAR, _YEAR, "years"),
    (2 * _DAY, _DAY, "days"),
    (7200, 3600, "h"),
    (120, 60, "min"),
)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], fold: int | None = None) -> None:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_header=any(heads))
    for i, head in enumerate(heads):
        right = i > 0 and any(heads)
        table.add_column(head, justify="right" if right else "left", no_wrap=i != fold)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


def _say(text: str, dim: bool = False) -> None:
    out.print(Text(text, style="dim" if dim else ""))
