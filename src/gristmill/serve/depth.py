"""How deep JSON may go: what reads it calls itself at every level."""

from __future__ import annotations

import numpy as np

from gristmill.serve.errors import ApiError

MAX_DEPTH = 64
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_ELSE = bytes(set(range(256)) - set(b'"[]{}'))


def check_depth(raw: bytes, limit: int = MAX_DEPTH) -> None:
    """Raises ApiError 400 for JSON in which arrays and objects are nested deeper than `limit`, before anything that
    calls itself reads it. 16 MiB take 0.1 to 0.5 s, 14 kB of chat 0.1 ms.

    Everything but quotes and brackets is dropped, and then what stands between quotes.
    """
    marks = raw.replace(rb"\\", b"").replace(rb"\"", b"").translate(_BRACKETS, _ELSE)
    marks = marks.replace(b'""', b"")  # empty now; or two strings in one, whose insides stay inside
    outside = marks if b'"' not in marks else b"".join(marks.split(b'"')[::2])
    if len(outside) <= limit:
        return
    steps = ord("\\") - np.frombuffer(outside, np.int8)  # "[" comes just before it, "]" just after
    if np.cumsum(steps, dtype=np.int32).max() > limit:
        raise ApiError(400, f"the JSON is nested deeper than {limit} levels", code="invalid_json")
