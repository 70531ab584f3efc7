"""Attached files that a server holds in memory, each with an index of its own, and what answers are looked up in."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from gristmill.data.facts import extract
from gristmill.errors import RequestError
from gristmill.retrieval import Index, Searchable, Together
from gristmill.serve.errors import FieldError
from gristmill.serve.web.files import File, read_file

MAX_COUNT = 256
MAX_BYTES = 512 << 20


@dataclass(frozen=True)
class Attachment:
    """bytes: of the file as it came. passages: that can be found in it."""

    id: str
    name: str
    bytes: int
    index: Index

    @property
    def passages(self) -> int:
        return self.index.size


class Attachments:
    """Those of a server, safe to use from several threads. Beyond max_count of them, or max_bytes of their indexes,
    those that were not used for longest are let go of; and all when the server ends."""

    def __init__(self, max_count: int = MAX_COUNT, max_bytes: int = MAX_BYTES) -> None:
        self._max_count, self._max_bytes = max_count, max_bytes
        self._held: OrderedDict[str, Attachment] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, name: str, raw: bytes) -> Attachment:
        """Raises RequestError for what cannot be read as text."""
        index = _indexed(read_file(name, raw))
        if index.nbytes > self._max_bytes:
            raise RequestError(f"{name} is larger than all that this server holds of attachments.")
        made = Attachment(f"att_{secrets.token_hex(12)}", name, len(raw), index)
        with self._lock:
            self._held[made.id] = made
            self._bytes += index.nbytes
            while len(self._held) > self._max_count or self._bytes > self._max_bytes:
                _, oldest = self._held.popitem(last=False)
                self._bytes -= oldest.index.nbytes
        return made

    def get(self, id: str) -> Attachment | None:
        with self._lock:
            if id in self._held:
                self._held.move_to_end(id)
            return self._held.get(id)

    def remove(self, id: str) -> bool:
        """Whether it was there."""
        with self._lock:
            gone = self._held.pop(id, None)
            if gone is not None:
                self._bytes -= gone.index.nbytes
        return gone is not None


def passages_for(index: Index | None, ids: Sequence[str], attachments: Attachments) -> Searchable:
    """What a chat with `retrieval` is answered from: the attached files, then the server's index if it is wanted.

    Raises FieldError for an attachment that is not there, and where there is nothing to look in.
    """
    parts: list[Searchable] = []
    for place, id in enumerate(dict.fromkeys(ids)):
        found = attachments.get(id)
        if found is None:
            raise FieldError(
                f"retrieval.attachments[{place}]",
                f"{id!r:.80} is not attached, or no longer: files are held until the server ends, or until many "
                "others have come after them. Attach it again",
                "attachment_not_found",
            )
        parts.append(found.index)
    if index is not None:
        parts.append(index)
    if not parts:
        raise FieldError("retrieval", "names nothing to look in: give attachments, or index: true")
    return parts[0] if len(parts) == 1 else Together(parts)


def _indexed(file: File) -> Index:
    """Python is found by what its documentation says of each name too."""
    facts, _ = extract([file.document]) if file.kind == "python" else ([], {})
    return Index.in_memory(facts, [file.document])
