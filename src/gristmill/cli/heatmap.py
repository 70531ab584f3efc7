"""A text as a page that shows where it surprised the model: every token coloured by its surprisal.

No script runs on the page (its policy forbids any): a token that is pointed at or has the focus shows its numbers
in a panel at the foot of the window, by style alone. The same numbers stand in a table below the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.engine import Candidate, Inspection, Read
from gristmill.report import Html, Section, figures, folded, join, meters, note, page, table, tag

if TYPE_CHECKING:
    from gristmill.formats import Model

_STYLE = Path(__file__).with_name("heatmap.css")
_STEP_BITS, _STEPS = 1.5, 9  # a colour for every so many bits; the last one for all from 12 on


def heatmap(seen: Inspection, model: Model) -> str:
    """The whole HTML document. `seen` is what `model` made of a text."""
    sections = []
    if seen.tokens:
        lead = (
            "The stronger a token's colour, the less the model expected it. Point at one, or reach it with the "
            "Tab key, to see its numbers and what was likeliest there."
        )
        texts = _texts(seen, model)
        if "" in texts:
            lead += " A dot is the beginning of a character that several tokens spell: the last one shows it."
        body = join(
            [_legend(), tag("div", join(map(_token, seen.tokens, texts)), class_="heat-text")]
        )
        sections.append(Section("The text", body, lead))
    following = join(
        [
            meters(
                [(repr(c.token), c.probability) for c in seen.next]
                + ([("all others", seen.rest)] if seen.rest > 0 else [])
            ),
            note(f"The entropy of this distribution is {seen.next_entropy:.2f} bits."),
        ]
    )
    sections.append(Section("What comes next", following))
    if seen.tokens:
        sections.append(Section("Every token", folded("The numbers as a table", _table(seen))))
    header = join([tag("style", Html(_STYLE.read_text(encoding="utf-8"))), _numbers(seen)])
    return page(
        "Where the text surprises the model", sections, subtitle=str(model.path), header=header
    )


def _numbers(seen: Inspection) -> Html:
    items = [("tokens", f"{len(seen.tokens):,}", "")]
    if seen.loss is not None and seen.perplexity is not None:
        items.append(("loss", f"{seen.loss:.3f}", "nats a token"))
        items.append(
            ("perplexity", f"{seen.perplexity:,.2f}", "the model chose as if among so many")
        )
    if seen.bits_per_byte is not None:
        items.append(("bits per byte", f"{seen.bits_per_byte:.3f}", "of UTF-8"))
    if seen.entropy is not None:
        items.append(("mean entropy", f"{seen.entropy:.2f}", "bits; what the model expected"))
    return figures(items)


def _legend() -> Html:
    """What the colours mean. It also lets a keyboard pass over the text, which is a stop for every token."""
    steps = (
        tag("span", f"{_STEP_BITS * i:g}{'+' if i == _STEPS - 1 else ''}", class_=f"heat{i}")
        for i in range(_STEPS)
    )
    skip = tag("a", "Skip the text", href="#what-comes-next")
    return tag("p", "surprisal in bits: ", join(steps), " ", skip, class_="heat-legend")


def _texts(seen: Inspection, model: Model) -> list[str]:
    """What each token shows. A character that several spell stands in the last of them; the others have ""."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(model.tokenizer.token_bytes(token.id)) for token in seen.tokens]


def _token(token: Read, text: str) -> Html:
    """The token's text with its panel."""
    shown = join(_visible(text)) if text else tag("span", "·", class_="heat-mark")
    if token.surprisal is None:
        return tag("span", shown, class_="heat-token")
    step = min(_STEPS - 1, int(token.surprisal / _STEP_BITS))
    return tag("span", shown, _panel(token), class_=f"heat-token heat{step}", tabindex="0")


def _panel(token: Read) -> Html:
    numbers = (
        f"{token.surprisal:.2f} bits · probability {token.probability:.2g} · rank {token.rank:,} · "
        f"entropy {token.entropy:.2f} bits · id {token.id}"
    )
    return tag(
        "span",
        tag("b", repr(token.token)),
        tag("span", numbers, class_="heat-numbers"),
        join(_bar(candidate) for candidate in token.expected),
        class_="heat-panel",
        role="tooltip",
    )


def _bar(candidate: Candidate) -> Html:
    """A likely token with a bar. Spans alone: a paragraph or table may not stand in a line of text."""
    width = f"width:{max(0.0, min(100.0, 100 * candidate.probability)):.1f}%"
    return tag(
        "span",
        tag("code", repr(candidate.token)),
        tag("span", tag("span", class_="meter", style=width), class_="heat-track"),
        tag("span", f"{candidate.probability:.1%}", class_="number"),
        class_="heat-bar",
    )


def _visible(text: str) -> Iterator[Html | str]:
    """A newline as a mark and a break; all else as it is (the style keeps its spaces)."""
    for i, line in enumerate(text.split("\n")):
        if i:
            yield from (tag("span", "⏎", class_="heat-mark"), tag("br"))
        yield line


def _table(seen: Inspection) -> Html:
    head = ("token", "probability", "surprisal (bits)", "rank", "entropy (bits)", "likeliest there")
    return table(head, (_row(token) for token in seen.tokens))


def _row(token: Read) -> list[object]:
    name = tag("code", repr(token.token))
    if token.surprisal is None:
        return [name, "–", "–", "–", "–", ""]
    expected = join(
        (join([tag("code", repr(c.token)), f" {c.probability:.2f}"]) for c in token.expected),
        "  ",
    )
    numbers = (f"{token.probability:.4f}", f"{token.surprisal:.2f}", f"{token.rank:,}")
    return [name, *numbers, f"{token.entropy:.2f}", expected]
