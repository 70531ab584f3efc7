"""Logs of chats as text: WhatsApp's exports and IRC clients' logs, cut at days."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gristmill.data.decode import decode
from gristmill.data.sources.item import Raw
from gristmill.data.sources.opening import lines, opened

MAX_LOG_LINE = 100_000
LOG_TURNS = 500  # of one document; a channel's day can be endless
Turns = list[tuple[str, str]]

_CLOCK = r"\d{1,2}:\d\d(?::\d\d)?(?:[\s\u202f]?[AaPp]\.?\s?[Mm]\.?)?"
_DAY = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
_LOG_LINE = re.compile(
    rf"\u200e?\[?(?:(?P<day>{_DAY}),?[T ]\s?)?(?P<clock>{_CLOCK})\]?(?:\s+-)?\s+"
    r"(?:<[@+% ]?(?P<nick>[^<>\s]{1,40})>\s?|(?P<name>[^:<>*\n]{1,60}):\s)(?P<text>.*)",
)
_NOTICE = re.compile(rf"\u200e?\[?(?:{_DAY},?[T ]\s?)?{_CLOCK}\]?(?:\s+-)?\s+\S|---? (?:Log|Day)")


def turns_text(turns: Turns) -> str:
    return "\n\n".join(f"{role}: {text}" for role, text in turns) + "\n"


def is_log(path: Path) -> bool:
    with opened(path) as stream:
        return bool(
            _LOG_LINE.match(
                stream.readline(MAX_LOG_LINE).decode("utf-8", "replace").lstrip("\ufeff")
            )
        )


def read_log(path: Path, name: str) -> Iterator[Raw]:
    """A log's days (at most LOG_TURNS turns each); lines without a time belong to the message before."""
    turns: Turns = []
    day, documents, messages, notices = "", 0, 0, 0
    with opened(path) as stream:
        for number, line, length in lines(stream, MAX_LOG_LINE):
            if line is None:
                detail = {"bytes": length, "limit": MAX_LOG_LINE}
                yield Raw(f"{name}:{number}", reason="too_large", detail=detail, kind="chat")
                continue
            if not line.strip():
                continue
            decoded = decode(line)
            if decoded.reason:
                yield Raw(
                    f"{name}:{number}", reason=decoded.reason, detail=decoded.detail, kind="chat"
                )
                if number == 1:
                    return
                continue
            text = decoded.text.lstrip("\ufeff")
            found = _LOG_LINE.match(text)
            if found:
                messages += 1
                new_day = found["day"] or day
                if turns and (new_day != day or len(turns) >= LOG_TURNS):
                    documents += 1
                    yield _day(name, documents, day, turns)
                    turns = []
                day = new_day
                said = re.sub(
                    r"[\u200e\u200f]|<Media omitted>|<Medien ausgeschlossen>", "", found["text"]
                ).strip()
                if said:
                    who = found["nick"] or found["name"]
                    turns.append((" ".join(who.split()), said))
            elif _NOTICE.match(text) or not turns:
                notices += 1  # someone joined; what encrypts the chat
                if not messages and notices > 200:
                    break
            elif len(turns[-1][1]) < MAX_LOG_LINE:
                turns[-1] = (turns[-1][0], f"{turns[-1][1]}\n{text.strip()}")
    if turns:
        yield _day(name, documents + 1, day, turns)
    elif not documents:
        yield Raw(name, reason="no_turns", detail={"lines_looked_at": notices}, kind="chat")


def _day(name: str, number: int, day: str, turns: Turns) -> Raw:
    detail: dict[str, Any] = {"turns": len(turns), "people": len({who for who, _ in turns})}
    if day:
        detail["day"] = day
    return Raw(f"{name}#{number}", turns_text(turns), detail=detail, kind="chat")
