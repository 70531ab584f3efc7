"""Charts of scaling laws as inline SVG: points and lines over a logarithmic x, in the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gristmill.report import Html, Series, join, tag
from gristmill.report.charts import number, ticks

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 540, 300, 58, 18, 12, 42


def log_chart(
    dots: Sequence[Series],
    lines: Sequence[Series] = (),
    *,
    x: str,
    y: str,
    title: str,
    log_y: bool = False,
) -> Html:
    """dots: marks without a line. lines: drawn through their points, dashed where they say so. '' of nothing."""
    points = [p for one in (*dots, *lines) for p in one.points if p[0] > 0 and math.isfinite(p[1])]
    if not points:
        return Html("")
    low, high = _widened([math.log10(a) for a, _ in points], 0.04)
    heights = [math.log10(b) if log_y else b for _, b in points]
    bottom, top = _widened(heights, 0.06)

    def px(value: float) -> float:
        return _LEFT + (math.log10(value) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def py(value: float) -> float:
        at = math.log10(value) if log_y else value
        return _HEIGHT - _BOTTOM - (at - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    parts: list[Html] = []
    marks = decades(bottom, top) if log_y else ticks(bottom, top)
    for tick in marks:
        at = py(tick)
        if _TOP - 1 <= at <= _HEIGHT - _BOTTOM + 1:
            place = f"{at:.1f}"
            parts.append(
                tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=place, y2=place, class_="grid")
            )
            label = power(tick) if log_y else number(tick)
            parts.append(tag("text", label, x=_LEFT - 8, y=f"{at + 4:.1f}", class_="end"))
    for tick in decades(low, high):
        at = px(tick)
        if _LEFT <= at <= _WIDTH - _RIGHT:
            label = tag(
                "text", power(tick), x=f"{at:.1f}", y=_HEIGHT - _BOTTOM + 18, class_="middle"
            )
            parts.append(label)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(tag("text", x, x=middle, y=_HEIGHT - 6, class_="middle axis"))
    for one in lines:
        way = " ".join(
            f"{'M' if i == 0 else 'L'}{px(a):.1f},{py(b):.1f}"
            for i, (a, b) in enumerate(one.points)
        )
        dashed = " dashed" if one.dashed else ""
        parts.append(
            tag("path", tag("title", one.name), d=way, class_=f"line c{one.colour}{dashed}")
        )
    for one in dots:
        for a, b in one.points:
            if a > 0 and math.isfinite(b):
                words = tag("title", f"{one.name}: {b:.4g} at {x} {a:.3g}")
                parts.append(
                    tag(
                        "circle",
                        words,
                        cx=f"{px(a):.1f}",
                        cy=f"{py(b):.1f}",
                        r=3,
                        class_=f"mark c{one.colour} seen",
                    )
                )
    shown = [one for one in (*dots, *lines) if one.name]
    legend = join(tag("span", tag("i", class_=f"c{s.colour}"), s.name) for s in shown)
    svg = tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title}: {y} over {x}",
    )
    caption = tag("figcaption", tag("b", title), tag("span", legend, class_="legend"))
    return tag("figure", caption, svg, class_="chart")


def decades(low: float, high: float) -> list[float]:
    """Powers of ten in a span of log10, with 2 and 5 between where they are few."""
    whole = [10.0**e for e in range(math.floor(low), math.ceil(high) + 1)]
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    return [w * s for w in whole for s in steps if low <= math.log10(w * s) <= high]


def power(value: float) -> str:
    """A label: 3e+18 as 3e18, small ones as they are."""
    if 1e-3 < value < 1e6:
        return number(value)
    return f"{value:.0e}".replace("e+", "e").replace("e0", "e")


def _widened(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    edge = (high - low) * share or 0.05 * (abs(high) or 1.0)
    return low - edge, high + edge
