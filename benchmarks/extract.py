"""HTML to kept text: ours against trafilatura on every page, with the quality of the text.

    python -m benchmarks.extract [--repeats 3] [-o benchmarks/results/extract.json]

Pages: the article-extraction set (90 pages, ground truth by hand), alone and mixed with junk (real pages of
installed packages that the gate refuses). Both sides get bytes and the same keep decision; times are
processor seconds of one core, ours with the child process and its pipes, medians of the repeats.
F1 is that of the article-extraction-benchmark: 4-word shingles, precision and recall averaged over pages.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gristmill.data.extract import Watchdog, extract
from gristmill.data.extract.watchdog import _cpu_seconds

SET = Path(__file__).parents[2] / "shared" / "data" / "crawl" / "article-extraction"
_WORD = re.compile(r"\w+")
_STOP_WORDS = re.compile(r"\b(?:the|be|to|of|and|that|have|with)\b", re.I)


def load_pages() -> tuple[dict[str, bytes], dict[str, str]]:
    """(page bytes, the article's text) by id."""
    truth = json.loads((SET / "ground-truth.json").read_text())
    pages = {key: gzip.decompress((SET / "html" / f"{key}.html.gz").read_bytes()) for key in truth}
    return pages, {key: entry["articleBody"] for key, entry in truth.items()}


def load_junk(limit: int = 400) -> dict[str, bytes]:
    """HTML files in the installed packages, in order of path."""
    root = Path(sysconfig.get_paths()["purelib"])
    paths = sorted(path for path in root.rglob("*.html") if 500 < path.stat().st_size < 1_000_000)
    return {str(path): path.read_bytes() for path in paths[:limit]}


def gate(text: str) -> str:
    """At least 50 words, and a stop word, which a page of any European language in this set has not
    always: pages of other scripts pass on length alone."""
    words = len(_WORD.findall(text))
    if words < 50:
        return "too_few_words"
    ascii_share = sum(c < "\x7f" for c in text) / len(text)
    return "no_stop_words" if ascii_share > 0.98 and not _STOP_WORDS.search(text) else ""


def shingles(text: str, size: int = 4) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text)
    if len(words) < size:
        return Counter([tuple(words)] if words else [])
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def quality(texts: dict[str, str], truth: dict[str, str]) -> dict[str, float]:
    precisions, recalls = [], []
    for key, wanted in truth.items():
        want, got = shingles(wanted), shingles(texts.get(key, ""))
        common = (want & got).total()
        precisions.append(common / got.total() if got else 0.0)
        recalls.append(common / want.total() if want else 1.0)
    precision, recall = statistics.mean(precisions), statistics.mean(recalls)
    f1 = 2 * precision * recall / (precision + recall)
    return {"f1": round(f1, 4), "precision": round(precision, 4), "recall": round(recall, 4)}


def ours(pages: dict[str, bytes], dog: Watchdog) -> tuple[float, dict[str, str]]:
    dog.ask("page", b"<p>warm</p>", "")
    assert dog._child is not None
    child = dog._child.pid
    began = time.process_time() + _cpu_seconds(child)
    texts = {}
    for key, page in pages.items():
        got = extract(page, gate=gate, watchdog=dog)
        if not got.reason:
            texts[key] = got.text
    return time.process_time() + _cpu_seconds(child) - began, texts


def theirs(pages: dict[str, bytes]) -> tuple[float, dict[str, str]]:
    import trafilatura

    began = time.process_time()
    texts = {}
    for key, page in pages.items():
        text = trafilatura.extract(page, favor_precision=True, include_comments=False) or ""
        if text and not gate(text):
            texts[key] = text
    return time.process_time() - began, texts


def compare(pages: dict[str, bytes], repeats: int, dog: Watchdog) -> dict[str, Any]:
    runs = [(ours(pages, dog), theirs(pages)) for _ in range(repeats)]
    a, b = runs[0][0][1], runs[0][1][1]
    seconds = [statistics.median(run[side][0] for run in runs) for side in (0, 1)]
    return {
        "pages": len(pages),
        "megabytes": round(sum(map(len, pages.values())) / 1e6, 2),
        "seconds": round(seconds[0], 3),
        "trafilatura_seconds": round(seconds[1], 3),
        "ratio": round(seconds[1] / seconds[0], 2),
        "kept": len(a),
        "trafilatura_kept": len(b),
        "kept_differently": len(a.keys() ^ b.keys()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    import logging

    import trafilatura

    logging.disable(logging.CRITICAL)
    pages, truth = load_pages()
    junk = load_junk()
    result: dict[str, Any] = {"trafilatura": trafilatura.__version__}
    with Watchdog() as dog:
        theirs(dict(list(pages.items())[:3]))
        result["articles"] = compare(pages, options.repeats, dog)
        first, second = ours(pages, dog)[1], theirs(pages)[1]
        both = {key: truth[key] for key in truth if key in first and key in second}
        result["articles"]["ours"] = quality(first, both)
        result["articles"]["theirs"] = quality(second, both)
        result["package_pages"] = compare(junk, options.repeats, dog)
        result["mixed"] = compare(pages | junk, options.repeats, dog)
        refused = {
            key: page for key, page in junk.items() if extract(page, gate=gate, watchdog=dog).reason
        }
        result["articles_and_refused"] = compare(pages | refused, options.repeats, dog)
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
