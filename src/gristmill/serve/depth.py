"""How deep JSON may go, since what reads it calls itself at every level, and how much it may hold."""

from __future__ import annotations

import numpy as np

from gristmill.serve.errors import ApiError

MAX_DEPTH = 64
# Of a body of 16 MiB, as small as they come: reading it would hold everybody up for many seconds. 2 million take 0.3 s.
MAX_VALUES = 2 << 20
MAX_CONTAINERS = 100_000
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_ELSE = bytes(set(range(256)) - set(b'",[]{}'))


def check_depth(raw: bytes, limit: int = MAX_DEPTH) -> None:
    """Raises ApiError 400 for JSON in which arrays and objects are nested deeper than `limit`, before anything that
    calls itself reads it, and 413 for more than MAX_VALUES values or MAX_CONTAINERS arrays and objects. 16
    MiB take 0.1 to 0.5 s, 14 kB of chat 0.1 ms.

    Everything but quotes, commas and brackets is dropped, and then what stands between quotes.
    """
    marks = raw.replace(rb"\\", b"").replace(rb"\"", b"").translate(_BRACKETS, _ELSE)
    marks = marks.replace(b'""', b"")  # empty now; or two strings in one, whose insides stay inside
    outside = marks if b'"' not in marks else b"".join(marks.split(b'"')[::2])
    if len(outside) <= limit:
        return
    brackets = outside.replace(b",", b"")
    steps = ord("\\") - np.frombuffer(brackets, np.int8)  # "[" comes just before it, "]" just after
    if np.cumsum(steps, dtype=np.int32).max(initial=0) > limit:
        raise ApiError(400, f"the JSON is nested deeper than {limit} levels", code="invalid_json")
    if outside.count(b",") >= MAX_VALUES:
        raise ApiError(413, f"the JSON holds more than {MAX_VALUES} values", code="invalid_json")
    if brackets.count(b"[") > MAX_CONTAINERS:
        told = f"the JSON holds more than {MAX_CONTAINERS} arrays and objects"
        raise ApiError(413, told, code="invalid_json")
