"""Pieces of a page: tables, figures, key numbers, folded samples, conversations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gristmill.report.html import Html, join, tag, text


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> Html:
    """A table. Numbers (int, float, and text that starts with a digit) are set to the right."""
    written = [list(row) for row in rows]
    if not written:
        return Html("")
    right = [
        all(_is_number(row[i]) for row in written if i < len(row) and row[i] not in ("", "–"))
        for i in range(len(head))
    ]

    def cells(row: Sequence[object], kind: str) -> Html:
        return join(
            tag(kind, _shown(cell), class_="number" if i < len(right) and right[i] else None)
            for i, cell in enumerate(row)
        )

    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption) if caption else "",
            tag("thead", tag("tr", cells(head, "th"))),
            tag("tbody", join(tag("tr", cells(row, "td")) for row in written)),
        ),
        class_="scroll",
    )


def _is_number(cell: object) -> bool:
    if isinstance(cell, Html):
        return False
    return isinstance(cell, int | float) or str(cell)[:1].isdigit()


def _shown(cell: object) -> object:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.4g}"
    return cell


def figures(items: Iterable[tuple[str, str, str]]) -> Html:
    """Big numbers in a row: (what it is, the number, a note)."""
    cards = join(
        tag(
            "div",
            tag("dt", label),
            tag("dd", tag("span", number, class_="big"), tag("span", note, class_="note")),
        )
        for label, number, note in items
    )
    return tag("dl", cards, class_="figures") if cards else Html("")


def folded(summary: object, body: Html, *, opened: bool = False) -> Html:
    """Content that a click shows."""
    attributes = {"open": ""} if opened else {}
    return tag("details", tag("summary", summary), body, **attributes)


def code(source: str, *, limit: int = 2000) -> Html:
    """Preformatted text, cut (visibly) when it is long."""
    cut = source if len(source) <= limit else source[:limit] + f"\n… {len(source) - limit:,} more"
    return tag("pre", cut)


def columns(parts: Iterable[tuple[str, Html]]) -> Html:
    """Things to compare, side by side under their names (below each other on a narrow screen)."""
    return tag(
        "div",
        join(tag("div", tag("h4", name), body, class_="column") for name, body in parts),
        class_="columns",
    )


def says(who: str, what: str, *, note: str = "", limit: int = 700) -> Html:
    """One turn of a conversation. who: "user" or "assistant"."""
    shown = what if len(what) <= limit else what[:limit] + " …"
    return tag(
        "div",
        tag("p", shown) if shown.strip() else tag("p", "(nothing)", class_="note"),
        tag("p", note, class_="note") if note else "",
        class_=f"says {text(who)}",
    )


def meters(rows: Iterable[tuple[str, float]]) -> Html:
    """Probabilities with a bar each: (label, share between 0 and 1)."""
    return tag(
        "table",
        tag(
            "tbody",
            join(
                tag(
                    "tr",
                    tag("td", tag("code", label)),
                    tag(
                        "td",
                        tag("span", class_="meter", style=f"width:{100 * _clamp(share):.2f}%"),
                        class_="track",
                    ),
                    tag("td", f"{100 * share:.1f}%", class_="number"),
                )
                for label, share in rows
            ),
        ),
        class_="meters",
    )


def _clamp(share: float) -> float:
    return min(1.0, max(0.0, share))


def note(words: str) -> Html:
    return tag("p", words, class_="note")
