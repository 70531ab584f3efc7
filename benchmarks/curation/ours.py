"""Our side of the chain, with the parts that the build uses."""

from __future__ import annotations

from collections.abc import Callable

from gristmill.data.language import identify
from gristmill.data.pii import find
from gristmill.data.rules import PROFILES, judge, measure
from gristmill.data.text import segment, signature

PARTS: dict[str, Callable[[str], object]] = {
    "rules": lambda text: judge(measure(text, PROFILES["web"])[0], PROFILES["web"]),
    "signature": lambda text: signature(segment(text)),
    "private": find,
    "language": identify,
}


def ours(leaving: bool) -> Callable[[str], str]:
    """What drops a text first, or "". All rules come from one pass; `leaving` spares a dropped text what follows."""
    web = PROFILES["web"]

    def run(text: str) -> str:
        signals, text = measure(text, web)
        reason = judge(signals, web).reason
        if not (reason and leaving):
            signature(segment(text))
            find(text)
        return reason

    return run
