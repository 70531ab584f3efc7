"""An answer that can hold no calls: all of it is content."""

from __future__ import annotations

from gristmill.serve.parsing.events import Event, Text


class PlainParser:
    def feed(self, text: str) -> list[Event]:
        return [Text(text)] if text else []

    def finish(self) -> list[Event]:
        return []
