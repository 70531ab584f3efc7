"""Private data out of a text: found and replaced until nothing is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from gristmill.data.pii.find import find
from gristmill.data.pii.found import KINDS
from gristmill.data.pii.replace import Action, apply

# What is taken out may lay bare what stood beside it: "ada@b.org-----BEGIN PRIVATE KEY" is no address before.
_ROUNDS = 5


def clear(
    text: str, action: Action = "remove", key: bytes = b"", kinds: Collection[str] = KINDS
) -> tuple[str, dict[str, int]]:
    """(`text` without what `find` finds of `kinds`, how much of each kind). Clearing twice changes nothing more.

    action, key: see `apply`; "flag" counts and changes nothing.
    """
    counts: Counter[str] = Counter()
    for _ in range(1 if action == "flag" else _ROUNDS):
        found = [item for item in find(text) if item.kind in kinds]
        if not found:
            break
        counts.update(item.kind for item in found)
        text = apply(text, found, action, key)
    return text, dict(sorted(counts.items()))
