"""What `gristmill scaling` prints: tables that fit 80 columns, and the same as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli.console import counted, out

if TYPE_CHECKING:
    from gristmill.scaling.approaches import Growth
    from gristmill.scaling.fit import Fit
    from gristmill.scaling.ladder import Ladder
    from gristmill.scaling.predict import HeldOut


def fit_json(
    found: Fit,
    growths: list[Growth],
    held_out: HeldOut | None,
    warnings: list[str],
    rates: list[dict[str, float]],
    file: Path,
    html: Path | None,
) -> dict[str, Any]:
    sampled = bool(found.sampled)
    return {
        "law": asdict(found.law),
        "intervals": {k: list(v) for k, v in found.intervals().items()} if sampled else {},
        "objective": found.value,
        "runs": len(found.runs),
        "fixed": list(found.fixed),
        "residuals": found.residuals.tolist(),
        "exponents": {
            growth.name: {
                "exponent": growth.exponent,
                "interval": list(growth.interval) if growth.sampled else None,
            }
            for growth in growths
        },
        "largest_left_out": None
        if held_out is None
        else asdict(held_out) | {"errors": held_out.errors, "worst": held_out.worst},
        "rates": rates,
        "warnings": warnings,
        "fit": str(file),
        "page": None if html is None else str(html),
    }


def show_ladder(ladder: Ladder, losses: dict[str, float]) -> None:
    rows = [
        (
            f"{rung.budget:.1e}",
            short(rung.params),
            f"{rung.config.num_layers} x {rung.config.hidden_size}",
            short(rung.tokens),
            f"{rung.tokens / rung.params:.1f}",
            f"{rung.lr_factor:g}",
            f"{losses[rung.name]:.4f}" if rung.name in losses else "",
        )
        for rung in ladder.rungs
    ]
    show_table(("FLOPs", "N", "layers", "D", "D/N", "rate", "loss"), rows)
    say(f"{counted(len(ladder.rungs), 'training')}, {ladder.flops:.2e} FLOPs in all (6ND)")


def show_fit(
    found: Fit, growths: list[Growth], held_out: HeldOut | None, rates: list[dict[str, float]]
) -> None:
    intervals = found.intervals()
    rows = [
        (
            name,
            f"{getattr(found.law, name):.5g}",
            *(("given", "") if name in found.fixed else map(_bound, intervals[name])),
        )
        for name in found.constants
    ]
    show_table(("", "fitted", "from", "to"), rows)
    show_table(
        ("best N grows with C by", "exponent", "from", "to"),
        [
            (growth.name, f"{growth.exponent:.3f}", *map(_bound, growth.interval))
            for growth in growths
        ],
    )
    if rates:
        show_table(
            ("N", "best rate, times the usual", "twice as high costs, nats"),
            [(short(r["scale"]), f"{r['best']:.2f}", f"{r['doubled']:.4f}") for r in rates],
        )
    say(f"{counted(len(found.runs), 'run')}; objective {found.value:.6g}")
    if held_out is not None:
        say(
            f"The largest runs, foreseen from the others: worst error {held_out.worst:.2%}, "
            f"{held_out.inside} of {len(held_out.actual)} inside"
        )


def show_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)


def say(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)


def _bound(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def short(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
