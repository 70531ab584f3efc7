"""Every decision of ours beside datatrove's, on the same pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from benchmarks.curation import peer
from benchmarks.curation.pages import Page
from gristmill.data.rules import PROFILES, Profile, Rule, judge, measure
from gristmill.data.rules.profiles import C4, FINEWEB, GOPHER_QUALITY, GOPHER_REPETITION


def _alone(rules: tuple[Rule, ...]) -> Profile:
    return replace(WEB, name="one filter", rules=rules)


WEB = PROFILES["web"]
REPETITION, QUALITY, LOOSE = map(_alone, (GOPHER_REPETITION, GOPHER_QUALITY, C4))
STRICT = replace(LOOSE, terminal_punctuation=True)
AS_IT_CAME = replace(_alone(FINEWEB), rewrites=False)


@dataclass(frozen=True, slots=True)
class Difference:
    source: str
    filter: str
    theirs: str
    ours: str


@dataclass
class Parity:
    """reasons: filter -> reason -> pages that datatrove drops for it ("" are the kept ones)."""

    pages: int = 0
    characters: int = 0
    reasons: dict[str, Counter[str]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)


def parity(pages: Iterable[Page]) -> Parity:
    found = Parity()
    for page in pages:
        found.pages += 1
        found.characters += len(page.text)
        for name, theirs, ours in decisions(page.text):
            found.reasons.setdefault(name, Counter())[theirs] += 1
            if theirs != ours:
                found.differences.append(Difference(page.source, name, theirs, ours))
    return found


def decisions(text: str) -> list[tuple[str, str, str]]:
    """(filter, their reason, our reason) of each filter alone and of the chain, and of the texts that C4's line
    rules leave: "text" and "other text" where they are not the same. FineWeb's filter sees what C4's leave, or the
    text as it came if C4 drops the page."""
    theirs = {name: peer.decide(name, text) for name in ("repetition", "quality", "c4", "c4_loose")}
    strict, strict_text = measure(text, STRICT)
    web, web_text = measure(text, WEB)
    ours = {
        "repetition": judge(web, REPETITION).reason,
        "quality": judge(web, QUALITY).reason,
        "c4": judge(strict, STRICT).reason,
        "c4_loose": judge(web, LOOSE).reason,
    }
    rows = [(name, reason, ours[name]) for name, (reason, _) in theirs.items()]
    for name, left in (("c4", strict_text), ("c4_loose", web_text)):
        if not theirs[name][0]:
            rows.append((f"{name} lines", "text", "text" if left == theirs[name][1] else "other"))
    dropped, left = theirs["c4_loose"]
    last = peer.decide("fineweb", left)[0]
    rows.append(
        (
            "fineweb",
            last,
            judge(measure(text, AS_IT_CAME)[0] if dropped else web, AS_IT_CAME).reason,
        )
    )
    first = next(filter(None, (theirs[name][0] for name in peer.CHAIN[:-1])), last)
    rows.append(("chain", first, judge(web, WEB).reason))
    return rows
