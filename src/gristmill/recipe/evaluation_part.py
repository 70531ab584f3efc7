"""The page's parts on what was measured: beside baselines, next tokens, conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.recipe.headline import percent
from gristmill.recipe.look import look
from gristmill.recipe.making_part import visible
from gristmill.report import (
    Bar,
    Html,
    Section,
    bar_chart,
    columns,
    join,
    meters,
    note,
    says,
    table,
    tag,
)

Manifests = Mapping[str, Mapping[str, Any]]

STAGES = {"base": "Base model", "sft": "After SFT", "dpo": "After DPO"}
# key -> (label, colour)
BITS = {
    "untrained": ("untrained model", 6),
    "xz": ("xz -9e", 6),
    "ngram5": ("5-gram", 6),
    "xz_context": ("xz -9e + training text", 6),
    "base": ("base model", 1),
    "sft": ("after SFT", 2),
    "dpo": ("after DPO", 3),
    "int8": ("8-bit weights", 5),
}
HOWS = {"closed_book": "closed book", "retrieval": "with retrieval"}
WHATS = {"seen": "seen", "heldout": "held out"}
CHANCE = 0.25


def evaluation(manifests: Manifests) -> Section | None:
    metrics = look(manifests, "evaluate", "metrics") or {}
    bits = dict(metrics.get("bits_per_byte", {}))
    baselines = look(manifests, "baselines", "metrics") or {}
    for name in ("xz", "xz_context", "ngram5"):  # a run that stopped before evaluation has these
        if f"{name}_bits_per_byte" in baselines:
            bits.setdefault(name, baselines[f"{name}_bits_per_byte"])
    if not bits and not metrics:
        return None
    body = join(
        (
            tag(
                "div",
                tag("div", _bits(bits), _preferences(metrics.get("preferences", {}))),
                _choices(metrics.get("choices", {})),
                class_="grid",
            ),
            _bits_by_group(metrics.get("bits_per_byte_by_group", {})),
        )
    )
    lead = "Measured on text and functions that training has not seen, unless it says “seen”."
    return Section("Evaluation", body, lead)


def _bits(bits: Mapping[str, Any]) -> Html:
    bars = [
        Bar(label, bits[name], colour=colour, strong=name == "base")
        for name, (label, colour) in BITS.items()
        if isinstance(bits.get(name), int | float)
    ]
    if not bars:
        return Html("")
    words = (
        "Bits needed to write one byte of the held-out text, given what came before. The baselines: the "
        "same network before training; xz alone; an interpolated 5-gram on the same tokens; xz that has "
        "the training text in its window, which finds every phrase that code repeats."
    )
    return join((bar_chart(bars, title="Held-out bits per byte (less is better)"), note(words)))


def _bits_by_group(by_group: Mapping[str, Mapping[str, float]]) -> Html:
    """The same for each group of the corpus."""
    names = [name for name in BITS if name in by_group]
    groups = sorted({group for name in names for group in by_group[name]})
    rows = [
        (
            group,
            *(f"{by_group[name][group]:.3f}" if group in by_group[name] else "–" for name in names),
        )
        for group in groups
    ]
    head = ("Bits per byte by group", *(BITS[name][0] for name in names))
    return table(head, rows)


def _choices(choices: Mapping[str, Any]) -> Html:
    bars = []
    for stage, title in STAGES.items():
        for how, how_said in HOWS.items():
            for what, what_said in WHATS.items():
                score = look(choices, stage, how, what)
                if look(score, "accuracy") is None:
                    continue
                bars.append(
                    Bar(
                        f"{how_said}, {what_said}",
                        100 * score["accuracy"],
                        error=100 * 1.96 * score.get("stderr", 0.0),
                        colour=2 if how == "retrieval" else 1,
                        strong=what == "seen",
                        note=f"n={score['n']}" if "n" in score else "",
                        group=title,
                    )
                )
    if not bars:
        return Html("")
    chart = bar_chart(
        bars,
        title="Which description belongs to this function? (%)",
        form="{:.1f}",
        reference=("chance 25%", 100 * CHANCE),
        top=100.0,
    )
    return tag(
        "div",
        chart,
        note("Four choices. Error bars: 95% intervals. “Seen”: training has asked about it."),
    )


def _preferences(preferences: Mapping[str, Any]) -> Html:
    bars = [
        Bar(
            what_said,
            100 * value,
            error=100 * 1.96 * (look(scores, f"{what}_stderr") or 0.0),
            note=f"n={scores[f'{what}_n']}" if f"{what}_n" in scores else "",
            colour=3,
            group=STAGES.get(stage, stage),
            strong=what == "heldout",
        )
        for stage, scores in preferences.items()
        for what, what_said in WHATS.items()
        if isinstance(value := look(scores, what), int | float)
    ]
    if not bars:
        return Html("")
    chart = bar_chart(
        bars,
        title="The right answer over a sibling's (%)",
        form="{:.1f}",
        reference=("chance 50%", 50.0),
        top=100.0,
    )
    return tag(
        "div", chart, note("Share of preference pairs whose chosen answer is the more likely one.")
    )


def next_tokens(manifests: Manifests) -> Section | None:
    views = look(manifests, "evaluate", "metrics", "next_token") or []
    parts = []
    for view in views:
        rows = [
            (visible(str(top.get("token", ""))), float(top.get("probability", 0.0)))
            for top in view.get("top", [])[:8]
        ]
        actual = (
            f"The text goes on with {visible(str(view['actual']))!r}." if view.get("actual") else ""
        )
        parts.append(
            tag(
                "div",
                tag("pre", _tail(str(view.get("prompt", "")))),
                meters(rows),
                note(actual) if actual else "",
                class_="column",
            )
        )
    if not parts:
        return None
    lead = (
        "What the model expects after a prompt: its most likely tokens, white space made visible."
    )
    return Section("Next token", tag("div", *parts, class_="grid small"), lead)


def _tail(prompt: str, limit: int = 400) -> str:
    return prompt if len(prompt) <= limit else "… " + prompt[-limit:]


def conversations(manifests: Manifests) -> Section | None:
    samples: Sequence[Mapping[str, Any]] = look(manifests, "evaluate", "metrics", "samples") or []
    parts = []
    for sample in samples:
        answers = sample.get("answers", {})
        names = {**STAGES, "dpo_retrieval": "With retrieval"}
        shown = []
        for name in [*names, *(n for n in answers if n not in names)]:
            if name not in answers:
                continue
            citations = sample.get("citations", []) if "retrieval" in name else []
            cited = f"Sources: {', '.join(map(str, citations))}" if citations else ""
            shown.append((names.get(name, name), says("assistant", str(answers[name]), note=cited)))
        about = str(sample.get("expected", ""))
        documented = f"The documentation: {about}" if about else ""
        asked = says("user", str(sample.get("question", "")), note=documented)
        parts.append(join((asked, columns(shown))))
    if not parts:
        return None
    lead = "The same questions to the model of each stage: what pretraining, SFT, DPO and retrieval add."
    return Section("Conversations", join(parts), lead)


def score_rows(manifests: Manifests) -> list[tuple[str, str]]:
    """The evaluation as (what, value) rows, for the model card."""
    metrics = look(manifests, "evaluate", "metrics") or {}
    rows = [
        (f"held-out bits per byte, {label}", f"{value:.4f}")
        for name, (label, _) in BITS.items()
        if isinstance(value := look(metrics, "bits_per_byte", name), int | float)
    ]
    for what, what_said in WHATS.items():
        score = look(metrics, "written", what)
        if look(score, "n"):
            shown, quoted = percent(score["shown"]), percent(score["quoted"])
            rows.append(
                (
                    f"answers written with sources, documented description in the model's own words, {what_said}",
                    f"{percent(score['own_words'])} (n={score['n']}); {shown} with what is quoted "
                    f"after them ({quoted} quote)",
                )
            )
    for stage, title in STAGES.items():
        for how, how_said in HOWS.items():
            for what, what_said in WHATS.items():
                score = look(metrics, "choices", stage, how, what)
                if look(score, "accuracy") is not None:
                    spread = f" ± {100 * score['stderr']:.1f}" if "stderr" in score else ""
                    number = f" (n={score['n']})" if "n" in score else ""
                    rows.append(
                        (
                            f"four choices, {title.lower()}, {how_said}, {what_said}",
                            f"{100 * score['accuracy']:.1f}%{spread}{number}",
                        )
                    )
    return rows


def score_table(manifests: Manifests) -> Html:
    return table(("Measure", "Value"), score_rows(manifests))
