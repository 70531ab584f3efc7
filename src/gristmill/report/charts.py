"""Charts as inline SVG: lines over x, and horizontal bars with error bars and a reference line.

Colours come from the page's style (`c1`…`c6`), so that a chart follows light and dark. Every mark
has a <title>, which browsers show on hover and screen readers read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gristmill.report.html import Html, join, tag

_MARKS = 160  # points of one line that get a hover mark


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    """value: length of the bar. error: half the width of its error bar. strong: the one to look at."""

    label: str
    value: float
    error: float = 0.0
    colour: int = 1
    strong: bool = False
    note: str = ""
    group: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's label: 12k rather than 12000, no trailing zeros."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):g}{suffix}"
    return f"{value:g}"


def line_chart(
    series: Sequence[Series], *, x: str, y: str, title: str = "", from_zero: bool = False
) -> Html:
    """Lines over a common x. Points that are not finite are left out; '' when none remain."""
    finite = [
        replace(s, points=[p for p in s.points if math.isfinite(p[0]) and math.isfinite(p[1])])
        for s in series
    ]
    kept = [s for s in finite if s.points]
    if not kept:
        return Html("")
    xs = [p[0] for s in kept for p in s.points]
    ys = [p[1] for s in kept for p in s.points]
    x_ticks = ticks(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, 6)
    if all(value == round(value) for value in xs):
        x_ticks = [tick for tick in x_ticks if tick == round(tick)]  # no half steps
    low, high = (0.0 if from_zero else min(ys)), max(ys)
    y_ticks = ticks(low, high if high > low else low + (abs(low) or 1) * 0.1)
    width, height, left, right, top, bottom = 540, 270, 50, 18, 12, 42
    x_low, x_high = min(xs), max(max(xs), x_ticks[-2] if len(x_ticks) > 1 else max(xs))
    x_high = x_high if x_high > x_low else x_low + 1

    def px(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (width - left - right)

    def py(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return height - bottom - share * (height - top - bottom)

    parts: list[Html] = []
    for tick in y_ticks:
        at = f"{py(tick):.1f}"
        parts.append(tag("line", x1=left, x2=width - right, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", number(tick), x=left - 8, y=f"{py(tick) + 4:.1f}", class_="end"))
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            at = f"{px(tick):.1f}"
            parts.append(tag("text", number(tick), x=at, y=height - bottom + 18, class_="middle"))
    parts.append(tag("text", x, x=(left + width - right) / 2, y=height - 6, class_="middle axis"))
    for one in kept:
        colour = f"c{one.colour}"
        way = " ".join(
            f"{'M' if i == 0 else 'L'}{px(a):.1f},{py(b):.1f}"
            for i, (a, b) in enumerate(one.points)
        )
        dashes = " dashed" if one.dashed else ""
        parts.append(tag("path", d=way, class_=f"line {colour}{dashes}"))
        step = max(1, math.ceil(len(one.points) / _MARKS))
        marked = [*one.points[::step], one.points[-1]]
        for a, b in dict.fromkeys(marked):
            label = f"{one.name}: {b:.4g} at {x} {a:,.6g}"
            few = " seen" if len(one.points) <= 24 else ""
            parts.append(
                tag(
                    "circle",
                    tag("title", label),
                    cx=f"{px(a):.1f}",
                    cy=f"{py(b):.1f}",
                    r=3,
                    class_=f"mark {colour}{few}",
                )
            )
    legend = join(tag("span", tag("i", class_=f"c{s.colour}"), s.name) for s in kept)
    svg = tag(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{title or y}: {', '.join(s.name for s in kept)} over {x}",
    )
    caption = tag("figcaption", tag("b", title or y), tag("span", legend, class_="legend"))
    return tag("figure", caption, svg, class_="chart")


def bar_chart(
    bars: Sequence[Bar],
    *,
    title: str = "",
    form: str = "{:.3f}",
    reference: tuple[str, float] | None = None,
    top: float | None = None,
) -> Html:
    """Horizontal bars from zero, under headings where `group` changes.

    reference: (name, value) of a line across all bars.
    top: the value at the right end; by default what the longest bar needs.
    """
    bars = [bar for bar in bars if math.isfinite(bar.value)]
    if not bars:
        return Html("")
    longest = max([bar.value + bar.error for bar in bars] + ([reference[1]] if reference else []))
    end = top if top is not None else (longest or 1.0)
    longest_label = max(len(bar.label) for bar in bars)
    width, left, row, head = 540, min(max(168, 7 * longest_label), 250), 25, 24
    right = 66 + max(7 * len(bar.note) for bar in bars)
    scale = (width - left - right) / end
    headings = ["", *(bar.group for bar in bars)]
    groups = sum(1 for a, b in pairwise(headings) if b and a != b)
    height = len(bars) * row + groups * head + 8 + (22 if reference else 0)
    parts: list[Html] = []
    at, group = 4.0, ""
    for bar in bars:
        if bar.group and bar.group != group:
            group = bar.group
            parts.append(tag("text", group, x=0, y=f"{at + 16:.1f}", class_="group"))
            at += head
        long = max(0.0, min(bar.value, end)) * scale
        strong = " strong" if bar.strong else ""
        value = form.format(bar.value)
        full = f"{bar.group + ', ' if bar.group else ''}{bar.label}: {value}"
        if bar.error:
            full += f" ± {form.format(bar.error)}"
        end_of_mark = long
        shapes = [
            tag(
                "rect",
                x=left,
                y=f"{at + 4:.1f}",
                width=f"{max(long, 1):.1f}",
                height=row - 9,
                rx=2,
                class_=f"bar c{bar.colour}{strong}",
            )
        ]
        if bar.error:
            low = left + max(0.0, bar.value - bar.error) * scale
            high = left + min(end, bar.value + bar.error) * scale
            end_of_mark = max(long, high - left)
            middle = at + row / 2 - 0.5
            way = (
                f"M{low:.1f},{middle:.1f}H{high:.1f}"
                f"M{low:.1f},{middle - 4:.1f}v8M{high:.1f},{middle - 4:.1f}v8"
            )
            shapes.append(tag("path", d=way, class_="error"))
        words = f"{value}  {bar.note}".rstrip()
        parts.append(
            tag(
                "g",
                tag("title", full + (f" ({bar.note})" if bar.note else "")),
                tag("text", bar.label, x=left - 8, y=f"{at + 17:.1f}", class_=f"end{strong}"),
                *shapes,
                tag(
                    "text",
                    words,
                    x=f"{left + end_of_mark + 6:.1f}",
                    y=f"{at + 17:.1f}",
                    class_=f"value{strong}",
                ),
            )
        )
        at += row
    if reference:
        name, value = reference
        x = left + value * scale
        parts.append(
            tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=2, y2=f"{at + 2:.1f}", class_="ref")
        )
        parts.append(tag("text", name, x=f"{x:.1f}", y=f"{at + 16:.1f}", class_="middle axis"))
    svg = tag("svg", *parts, viewBox=f"0 0 {width} {height:.0f}", role="img", aria_label=title)
    return tag("figure", tag("figcaption", tag("b", title)) if title else "", svg, class_="chart")
