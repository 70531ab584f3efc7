"""The text chain of curation: ours beside datatrove's, on the same pages, in the same run, on one core.

    python -m benchmarks.curation [--pages 500] [--rounds 3]
    python -m benchmarks.curation --parity [--pages 6000]

The chain is FineWeb's: Gopher repetition, Gopher quality, C4, FineWeb, MinHash signature, private data. "all" does
every part on every page; "leaving" leaves a page at the first rule that drops it. Each round is timed in time of the
processor; the median counts, in MB of UTF-8 text a second. "ours, first" is our first round, which meets most words
for the first time and has spaCy cut the odd ones. Ours finds more kinds of private data, and has 110 permutations
where datatrove has 112. The language is timed apart, for ours alone: datatrove's model is a download.

--parity compares every decision and first reason, on pages of up to 8,000 characters.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

from benchmarks.curation import peer
from benchmarks.curation.ours import PARTS, ours
from benchmarks.curation.pages import Page, pages
from benchmarks.curation.parity import parity
from gristmill.data.text.segment import extension
from gristmill.files import read_object, write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pages", type=int, help="500, or 6000 with --parity")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parity", action="store_true", help="compare decisions instead of speed")
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/curation.json"))
    options = parser.parse_args()
    record = read_object(options.out)
    record["versions"] = {name: version(name) for name in ("datatrove", "spacy")}
    record["native"] = extension() is not None
    if options.parity:
        record["parity"] = compared(pages(options.pages or 6000, 8000))
    else:
        record["chain"] = timed(pages(options.pages or 500, 20_000), options.rounds)
    write_json(options.out, record)


def compared(taken: list[Page]) -> dict[str, Any]:
    found = parity(taken)
    for name, reasons in found.reasons.items():
        told = ", ".join(f"{reason or 'kept'} {count}" for reason, count in reasons.most_common())
        print(f"{name:>16}: {told}")
    for difference in found.differences:
        print(difference)
    print(
        f"{found.pages} pages, {found.characters / 1e6:.1f} M characters: {len(found.differences)} differences"
    )
    return {
        "pages": found.pages,
        "characters": found.characters,
        "reasons": {name: dict(reasons.most_common()) for name, reasons in found.reasons.items()},
        "differences": [[d.source, d.filter, d.theirs, d.ours] for d in found.differences],
    }


def theirs(leaving: bool) -> Callable[[str], str]:
    signed, private = peer.signature(), peer.private()

    def run(text: str) -> str:
        first = ""
        for name in peer.CHAIN:
            reason, text = peer.decide(name, text)
            first = first or reason
            if first and leaving:
                return first
        signed(text)
        private(text)
        return first

    return run


def timed(taken: list[Page], rounds: int) -> dict[str, Any]:
    megabytes = sum(len(page.text.encode()) for page in taken) / 1e6
    texts = [page.text for page in taken]
    print(f"{len(texts)} pages, {megabytes:.2f} MB, datatrove {version('datatrove')}")
    print(f"{'':>8} {'ours':>12} {'datatrove':>12} {'ratio':>8} {'ours, first':>14}")
    record: dict[str, Any] = {"pages": len(texts), "megabytes": megabytes}
    for leaving in (False, True):
        sides = {"ours": ours(leaving), "datatrove": theirs(leaving)}
        clocks: dict[str, list[float]] = {name: [] for name in sides}
        for run in sides.values():
            list(map(run, texts[:20]))  # models are loaded
        reasons = {}
        for _ in range(rounds):
            for name, run in sides.items():
                clocks[name].append(clocked(partial(_into, reasons, name, run, texts)))
        speed = {name: megabytes / median(clocks[name]) for name in clocks}
        kept = {name: reasons[name].count("") for name in reasons}
        label = "leaving" if leaving else "all"
        first = megabytes / clocks["ours"][0]
        cold = "" if leaving else f" {first:9.2f} MB/s"  # later rounds know the words
        ratio = speed["ours"] / speed["datatrove"]
        print(
            f"{label:>8} {speed['ours']:7.2f} MB/s {speed['datatrove']:7.3f} MB/s {ratio:7.1f}x{cold}"
        )
        record[label] = {
            "mb_per_s": speed,
            "ratio": ratio,
            "kept": kept,
            "seconds": clocks,
            "same_reasons": sum(a == b for a, b in zip(*reasons.values(), strict=True)),
        }
    record["all"]["first_round_mb_per_s"] = megabytes / record["all"]["seconds"]["ours"][0]
    alone = {name: [] for name in PARTS}
    for name, part in PARTS.items():
        alone[name] = [clocked(lambda: list(map(part, texts))) for _ in range(rounds)]  # noqa: B023 - called at once
    record["parts_mb_per_s"] = {name: megabytes / median(alone[name]) for name in alone}
    print(
        "ours, one part at a time, MB/s:",
        *(f"{n} {v:.2f}" for n, v in record["parts_mb_per_s"].items()),
    )
    return record


def _into(
    reasons: dict[str, list[str]], name: str, run: Callable[[str], str], texts: list[str]
) -> None:
    reasons[name] = list(map(run, texts))


def clocked(call: Callable[[], object]) -> float:
    start = process_time()
    call()
    return process_time() - start


if __name__ == "__main__":
    main()
