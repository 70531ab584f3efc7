"""The curation report: one HTML page, readable without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.report import (
    Bar,
    Html,
    Section,
    bar_chart,
    code,
    figures,
    folded,
    join,
    note,
    page,
    table,
    tag,
)

_LISTS = (
    ("languages", "Languages"),
    ("kinds", "Kinds"),
    ("licenses", "Licences"),
    ("domains", "Domains"),
)


def curation_page(numbers: Mapping[str, Any], *, title: str) -> str:
    """The page of `survey(...)`'s numbers."""
    sections = [
        _sources(numbers["sources"]),
        _reasons(numbers["reasons"]),
        _nearly(numbers["nearly"]),
        _kept(numbers),
        _changes(numbers),
    ]
    return page(
        title,
        [section for section in sections if section is not None],
        subtitle="What was found, what was kept, and why the rest was not",
        header=_headline(numbers),
    )


def _headline(numbers: Mapping[str, Any]) -> Html:
    found, kept = numbers["found"], numbers["kept"]
    items = [
        ("Documents kept", f"{kept['documents']:,}", f"of {found['documents']:,}"),
        ("Text kept", _bytes(kept["bytes"]), f"of {_bytes(found['bytes'])}"),
        ("Sources", str(len(numbers["sources"])), ""),
    ]
    return figures(items)


def _sources(sources: Sequence[Mapping[str, Any]]) -> Section:
    rows = [
        (
            source["source"],
            source["found"]["documents"],
            _bytes(source["found"]["bytes"]),
            source["kept"]["documents"],
            _bytes(source["kept"]["bytes"]),
            f"{source['share_before']:.1%}",
            f"{source['share_after']:.1%}",
        )
        for source in sources
    ]
    head = ("Source", "Found", "Size", "Kept", "Size kept", "Share before", "Share after")
    left_out = [(s["source"], _few(s["dropped"])) for s in sources if s["dropped"]]
    body = [table(head, rows)]
    if left_out:
        body.append(table(("Source", "Most of what was left out"), left_out))
    return Section("Sources", join(body), "The mixture before and after curation.")


def _few(dropped: Mapping[str, int]) -> str:
    largest = sorted(dropped.items(), key=lambda pair: (-pair[1], pair[0]))[:4]
    return ", ".join(f"{_words(reason)} {count:,}" for reason, count in largest)


def _reasons(reasons: Mapping[str, Mapping[str, Any]]) -> Section | None:
    if not reasons:
        return None
    bars = [
        Bar(_words(name), float(reason["documents"]), colour=4, note=f"({_bytes(reason['bytes'])})")
        for name, reason in reasons.items()
    ]
    body = join((bar_chart(bars, form="{:,.0f}"), *map(_samples, reasons, reasons.values())))
    return Section(
        "What was left out, and why", body, "All of it is in dropped.parquet, with its story."
    )


def _nearly(reasons: Mapping[str, Mapping[str, Any]]) -> Section | None:
    if not reasons:
        return None
    rows = [(_words(name), reason["documents"]) for name, reason in reasons.items()]
    body = join((table(("Rule", "Documents"), rows), *map(_samples, reasons, reasons.values())))
    return Section(
        "What was nearly left out",
        body,
        "Kept documents that came within 5% of a rule's limit: if these look bad, the limit is too loose.",
    )


def _samples(name: str, reason: Mapping[str, Any]) -> Html:
    if not reason["samples"]:
        return Html("")
    shown = [
        join(
            (
                tag("p", tag("code", s["source"]), " ", _why(s.get("why")), class_="note"),
                code(s["text"]),
            )
        )
        for s in reason["samples"]
    ]
    return folded(f"{_words(name)}: {reason['documents']:,} documents", join(shown))


def _why(why: Mapping[str, Any] | None) -> str:
    if not why or "signal" not in why:
        return ""
    value = why["value"]
    told = f"{value:.4g}" if isinstance(value, int | float) else str(value)
    return f"{_words(why['signal'])} is {told}, kept if {why['limit']}"


def _kept(numbers: Mapping[str, Any]) -> Section:
    tables = [
        tag(
            "div",
            table(
                (title, "Documents", "Size"),
                [
                    (label, amount["documents"], _bytes(amount["bytes"]))
                    for label, amount in numbers[name].items()
                ],
            ),
        )
        for name, title in _LISTS
        if numbers[name]
    ]
    lengths = [Bar(f"{_bytes(low)} –", float(count)) for low, count in numbers["lengths"]]
    body = join(
        (
            tag("div", *tables, class_="grid"),
            bar_chart(lengths, title="Documents by length", form="{:,.0f}"),
        )
    )
    return Section("What was kept", body)


def _changes(numbers: Mapping[str, Any]) -> Section | None:
    parts = []
    for name, title in (("removed", "Private data taken out"), ("repaired", "Repairs of the text")):
        if numbers[name]:
            rows = [(_words(kind), count) for kind, count in numbers[name].items()]
            parts.append(tag("div", table((title, "Times"), rows)))
    if near := numbers["near"]:
        rows = [
            ("pairs", near["pairs"]),
            ("clusters that they connect", near["clusters"]),
            ("documents of the largest", near["largest"]),
            ("in earlier corpora", near["known"]),
        ]
        if near["diameter_min"] is not None:
            rows.append(("lowest similarity inside a cluster", f"{near['diameter_min']:.2f}"))
        parts.append(tag("div", table(("Near duplicates", ""), rows)))
    if numbers["clusters"]:
        rows = [(cluster["source"], cluster["copies"]) for cluster in numbers["clusters"]]
        parts.append(tag("div", table(("Most copied", "Copies left out"), rows)))
    if not parts:
        return None
    lead = note("Counts are over the kept documents.") if numbers["removed"] else Html("")
    return Section("What was changed", join((lead, tag("div", *parts, class_="grid"))))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
