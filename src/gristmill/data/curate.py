"""Curation of each document alone: a stage whose steps annotate a draft, and drop it for a stated reason.

Every document leaves with its story (`meta`): where it came from, what was measured, what was changed, and, if
it is dropped, by which signal, at which value, against which limit. Nothing is deleted here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gristmill.data.schema import arrow, document_id, part_schema, sound
from gristmill.errors import GristmillError


@dataclass(slots=True)
class Draft:
    """A document in the making. The steps read and write it; `reason` once set stays, and later steps pass by.

    story: what `gristmill data why` tells: JSON-able. html: the page that extraction turns into `text`.
    """

    source: str
    url: str
    license: str
    date: str
    kind: str
    group: str
    package: str
    title: str
    text: str
    charset: str
    reason: str
    html: bytes | None
    bytes: int
    story: dict[str, Any] = field(default_factory=dict)
    language: str = ""
    quality: float = 0.0
    exact: bytes = b""
    url_key: bytes = b""
    signature: bytes = b""
    shingles: Any = ()
    hits: list[tuple[int, int, int]] = field(default_factory=list)

    def drop(self, reason: str, **decided: Any) -> None:
        """`decided` says by what: signal, value, limit."""
        if not self.reason:
            self.reason = reason
            if decided:
                self.story["decided"] = decided


Step = Callable[[Draft], None]


@dataclass(frozen=True)
class Curate:
    """The stage. `settings` are a `steps.CurationConfig`; the steps are made in the process that runs them."""

    settings: Any
    key: str

    def __call__(self, batch: Any) -> Any:
        drafts = [self._draft(row) for row in batch.to_pylist()]
        for draft in drafts:
            _through(draft, self._steps)
        rows = [_row(draft) for draft in drafts]
        return arrow().RecordBatch.from_pylist(rows, schema=part_schema())

    def _draft(self, row: dict[str, Any]) -> Draft:
        story = {"bytes": row["bytes"], **json.loads(row.pop("detail"))}
        return Draft(**row, story=story)

    @cached_property
    def _steps(self) -> tuple[Step, ...]:
        from gristmill.data.steps import steps

        return steps(self.settings)

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "key": self.key}


def _through(draft: Draft, steps: tuple[Step, ...]) -> None:
    """A text that trips a step must not end the build: it is dropped as "failed", with the error."""
    try:
        for step in steps:
            step(draft)
    except (
        GristmillError
    ):  # a missing extra, an extraction that cannot start: not this text's fault
        raise
    except Exception as error:
        draft.reason = ""
        draft.drop("failed")
        draft.story["error"] = f"{type(error).__name__}: {error}"[:1000]


def _row(draft: Draft) -> dict[str, Any]:
    text = sound(draft.text)
    if draft.title:
        draft.story.setdefault("title", draft.title)
    return {
        "id": document_id(draft.url, draft.source),
        "text": text,
        "source": draft.source,
        "url": draft.url,
        "license": sound(draft.license),
        "date": sound(draft.date),
        "meta": sound(json.dumps(draft.story, ensure_ascii=False, default=str)),
        "kind": draft.kind,
        "group": draft.group,
        "package": draft.package,
        "drop_reason": draft.reason,
        "size": len(text.encode()),
        "unit": draft.package if draft.group == "packages" else draft.source,
        "quality": draft.quality,
        "exact": draft.exact,
        "url_key": draft.url_key,
        "signature": draft.signature,
        "shingles": draft.shingles,
        "hits": json.dumps(draft.hits) if draft.hits else "",
    }
