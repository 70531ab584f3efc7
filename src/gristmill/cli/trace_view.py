"""What `gristmill trace` shows a person: the text with its spans marked, their documents, the nearest rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli.console import counted, out
from gristmill.cli.terminal import harmless

if TYPE_CHECKING:
    from rich.text import Text

    from gristmill.data import Document
    from gristmill.data.trace import Traced

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")
_SHOWN = 160  # characters of a conversation's turn


def show(traced: Traced, documents: Path | None) -> None:
    """documents: where the rows of the documents are, if they are at hand."""
    from rich.text import Text

    shown, at = Text(), 0
    for number, passage in enumerate(traced.passages):
        style = f"{_COLOURS[number % len(_COLOURS)]} underline"
        shown.append(harmless(traced.text[at : passage.begin]))
        shown.append("⟦", style="dim")
        shown.append(harmless(traced.text[passage.begin : passage.end]), style=style)
        shown.append(f"⟧[{','.join(map(str, passage.spans))}]", style="dim")
        at = passage.end
    shown.append(harmless(traced.text[at:]))
    out.print(shown, soft_wrap=True)
    more = traced.found - len(traced.spans)
    out.print(
        f"\n{traced.verbatim:.0%} of {counted(traced.tokens, 'token')} stand in "
        f"{counted(traced.found, 'verbatim span')} of the training data"
        + (f"; the rarest {len(traced.spans)} are shown" if more else ""),
        markup=False,
        soft_wrap=True,
    )
    for number, span in enumerate(traced.spans, 1):
        out.print()
        head = f"{counted(span.tokens, 'token')}, {span.bits:.0f} bits, {counted(span.occurrences, 'time')}"
        line = Text.assemble((f"{number} ", "bold"), f"{_quoted(span.text)}  ", (head, "dim"))
        out.print(line, soft_wrap=True)
        for place in span.places:
            story = _story(traced.documents.get(place.document), place.document)
            out.print(f"  {story}", markup=False, soft_wrap=True)
            out.print(_around(place.before, span.text, place.after))
    if any(span.places for span in traced.spans) and documents is not None:
        out.print(
            f"\nThe whole story of a document: gristmill data why {documents} ID",
            markup=False,
            soft_wrap=True,
        )


def _around(before: str, span: str, after: str) -> Text:
    """A span in its document, in one line; of a long one the beginning."""
    from rich.text import Text

    room = max(30, out.width - 6)
    shown = _line(span)
    shown = shown if len(shown) <= room // 2 else f"{shown[: room // 2 - 1]}…"
    left = (room - len(shown)) // 2
    around = Text(f"    …{_line(before)[-left:]}", style="dim")
    around.append(shown, style="not dim underline")
    around.append(f"{_line(after)[: room - len(shown) - left]}…")
    return around


def _story(document: Document | None, name: str) -> str:
    """A line on where a document comes from and what was done to it."""
    if document is None:
        return f"document {name} (its row is not at hand)"
    meta = document.details
    facts = [f"{document.source} (id {name})", f"licence {document.license or 'not stated'}"]
    if document.date:
        facts.append(document.date[:10])
    facts.append(f"group {document.group}")
    removed = meta.get("removed")
    if isinstance(removed, dict) and any(removed.values()):
        facts.append("removed " + ", ".join(f"{n} {what}" for what, n in removed.items() if n))
    return harmless(", ".join(facts))


def show_nearest(near: dict[str, list[dict[str, Any]]]) -> None:
    """The rows that are nearest in words, by kind ("sft", "preferences")."""
    titles = {"sft": "Nearest conversations", "preferences": "Nearest preference pairs"}
    for name, found in near.items():
        if not found:
            continue
        out.print(f"\n{titles[name]} in {found[0]['file']}", markup=False, soft_wrap=True)
        for one in found:
            out.print(f"  line {one['line']}, score {one['score']:.1f}", markup=False)
            for role, said in _turns(one["row"]):
                out.print(f"    {harmless(role)}: {_quoted(said)}", markup=False, soft_wrap=True)


def _turns(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("messages", "prompt", "chosen", "rejected"):
        value = row.get(key)
        if isinstance(value, str):
            yield key, value
        for turn in value if isinstance(value, list) else ():
            if isinstance(turn, dict):
                role = turn.get("role", "") if key == "messages" else key
                yield str(role), str(turn.get("content", ""))


def _quoted(text: str) -> str:
    line = _line(text)
    return json.dumps(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…", ensure_ascii=False)


def _line(text: str) -> str:
    return harmless(text.replace("\n", "↵").replace("\t", "→"))
