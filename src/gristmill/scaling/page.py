"""The page of a fit: constants with intervals, the law against its runs, residuals, profiles, how size grows, and the
registered prediction of a run against what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gristmill.report import Html, Section, Series, columns, join, note, page, table
from gristmill.scaling.approaches import Growth, Profile
from gristmill.scaling.fit import LEVEL, Fit
from gristmill.scaling.laws import PUBLISHED
from gristmill.scaling.plot import log_chart
from gristmill.scaling.predict import HeldOut, score
from gristmill.scaling.runs import Runs

_LINES = 5  # sizes that get a line of their own
_COLOURS = 6


def fit_page(
    fit: Fit,
    growths: Sequence[Growth],
    profiles: Sequence[Profile],
    held_out: HeldOut | None,
    warnings: Sequence[str],
    source: str,
) -> str:
    """A whole HTML document that loads nothing."""
    sections = [
        Section(
            "The law", _law(fit), f"L = E + A/N^alpha + B/D^beta, fitted to {len(fit.runs)} runs."
        ),
        Section("Residuals", _residuals(fit), "What the law leaves: no trend should be seen."),
    ]
    if profiles:
        lead = "The runs of each budget, and the parabola whose bottom is the best size."
        sections.append(Section("IsoFLOP profiles", _profiles(profiles), lead))
    if growths:
        lead = "How the best size grows with compute, by each approach."
        sections.append(Section("Best size", _growths(growths, fit), lead))
    if held_out is not None:
        lead = "The runs from half of the most compute on, foreseen by a fit that did not see them."
        sections.append(Section("Largest runs left out", _held_out(held_out), lead))
    if warnings:
        sections.append(Section("Mind", join(note(line) for line in warnings)))
    return page("Scaling law", sections, subtitle=source)


def predicted_against_actual(
    registered: Mapping[str, Any], pretrain_metrics: Mapping[str, Any]
) -> Html:
    """For a run's report: the prediction that was registered before it trained, and what came out. '' where nothing
    was held out."""
    found = score(registered, pretrain_metrics)
    if found is None:
        return Html("")
    level = f"{registered['level']:.0%}"
    interval = "–" if found.low is None else f"{found.low:.4f} to {found.high:.4f}"
    verdict = {None: "no interval", True: f"inside the {level} interval", False: "outside it"}
    rows = [
        ("predicted loss, nats a token", f"{found.predicted:.4f}"),
        (f"{level} interval", interval),
        ("held-out loss", f"{found.actual:.4f}"),
        ("error of the prediction", f"{found.error:+.2%}, {verdict[found.inside]}"),
    ]
    words = (
        f"Registered {registered['registered']}, before training, from {registered['source']} "
        f"(sha256 {registered['source_sha256'][:12] or 'none'})."
    )
    warned = [*filter(None, [found.note]), *registered["predicted"]["warnings"]]
    return join([table(("", ""), rows), note(words), *(note(line) for line in warned)])


def _law(fit: Fit) -> Html:
    intervals = fit.intervals()
    rows = []
    for name in fit.constants:
        low, high = intervals[name]
        given = name in fit.fixed
        shown = "given" if given else f"{low:,.4g} to {high:,.4g}" if fit.sampled else "–"
        published = (f"{getattr(law, name):,.4g}" for law in PUBLISHED.values())
        rows.append((name, f"{getattr(fit.law, name):,.4g}", shown, *published))
    head = ("", "fitted", f"{LEVEL:.0%} interval", *PUBLISHED)
    counted = f" N counts {fit.runs.counted}." if fit.runs.counted else ""
    return join(
        [
            table(head, rows),
            note(
                "Published constants are of other data and tokenizers: exponents can be compared, E, A and B not."
                + counted
            ),
            _curves(fit),
        ]
    )


def _curves(fit: Fit) -> Html:
    """Runs over tokens, with the law's line of some sizes."""
    runs = fit.runs
    sizes = np.unique(runs.params)
    shown = sizes[np.unique(np.linspace(0, len(sizes) - 1, _LINES).round().astype(int))]
    lines = []
    for i, size in enumerate(shown):
        span = np.geomspace(runs.tokens.min(), runs.tokens.max(), 40)
        curve = list(zip(span.tolist(), fit.law.loss(size, span).tolist(), strict=True))
        lines.append(Series(f"N = {size:.2e}", curve, i % _COLOURS + 1, dashed=True))
    dots = []
    for i in range(len(shown)):
        near = np.argmin(np.abs(np.log(runs.params[:, None] / shown[None])), 1) == i
        dots.append(Series("", _pairs(runs.tokens[near], runs.loss[near]), i % _COLOURS + 1))
    return log_chart(dots, lines, x="D, tokens", y="loss", title="Loss, nats a token")


def _residuals(fit: Fit) -> Html:
    runs = fit.runs
    percent = 100 * np.expm1(fit.residuals)

    def chart(column: np.ndarray, x: str) -> Html:
        ends = [(float(column.min()), 0.0), (float(column.max()), 0.0)]
        return log_chart(
            [Series("runs", _pairs(column, percent))],
            [Series("law", ends, 6, dashed=True)],
            x=x,
            y="residual, %",
            title="Actual over law, %",
        )

    told = f"Median of the absolute residuals: {np.median(np.abs(percent)):.2f}%."
    charts = [
        chart(runs.params, "N, parameters"),
        chart(runs.tokens, "D, tokens"),
        chart(runs.flops, "C, FLOPs"),
    ]
    return join([columns(zip(("over N", "over D", "over C"), charts, strict=True)), note(told)])


def _profiles(profiles: Sequence[Profile]) -> Html:
    dots, lines, rows = [], [], []
    for i, one in enumerate(profiles):
        colour = i % _COLOURS + 1
        dots.append(Series(f"{one.flops:.1e} FLOPs", _pairs(one.params, one.loss), colour))
        if one.problem:
            rows.append((f"{one.flops:.2e}", "–", "–", one.problem))
            continue
        span = np.geomspace(one.params.min(), one.params.max(), 30)
        curve = one.bottom + one.bend * np.log(span / one.best) ** 2
        lines.append(Series("", _pairs(span, curve), colour))
        rows.append(
            (f"{one.flops:.2e}", f"{one.best:.3e}", f"{one.bottom:.4f}", f"{one.reach:.1f} x")
        )
    chart = log_chart(dots, lines, x="N, parameters", y="loss", title="Loss, nats a token")
    head = ("FLOPs", "best N", "loss there", "reach of its sizes")
    return join([chart, table(head, rows)])


def _growths(growths: Sequence[Growth], fit: Fit) -> Html:
    runs: Runs = fit.runs
    span = np.geomspace(runs.flops.min(), runs.flops.max() * 10, 20)
    lines, dots, rows = [], [], []
    for i, one in enumerate(growths):
        colour = i % _COLOURS + 1
        best = np.array([one.params(c) for c in span])
        lines.append(Series(one.name, _pairs(span, best), colour, dashed=one.name == "parametric"))
        dots.append(Series("", [(c, n) for c, n, _ in one.front], colour))
        low, high = one.interval
        interval = f"{low:.3f} to {high:.3f}" if one.sampled else "–"
        rows.append((one.name, f"{one.exponent:.3f}", interval))
    rows += [(f"published: {n}", f"{law.exponent:.3f}", "–") for n, law in PUBLISHED.items()]
    chart = log_chart(dots, lines, x="C, FLOPs", y="best N", title="Best N, parameters", log_y=True)
    return join([chart, table(("", "exponent of N in C", f"{LEVEL:.0%} interval"), rows)])


def _held_out(found: HeldOut) -> Html:
    rows = [
        (f"{p:.4f}", f"{a:.4f}", f"{e:+.2%}")
        for p, a, e in zip(found.predicted, found.actual, found.errors, strict=True)
    ]
    told = f"{found.inside} of {len(rows)} inside their {LEVEL:.0%} intervals; worst error {found.worst:.2%}."
    return join([table(("predicted", "actual", "error"), rows), note(told)])


def _pairs(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    return list(zip(np.asarray(x).tolist(), np.asarray(y).tolist(), strict=True))
