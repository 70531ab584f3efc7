"""A whole build of a web crawl: one worker against two, and what the rates come to for a large crawl.

    python -m benchmarks.build [--copies 6] [--rounds 3] [-o benchmarks/results/build.json]

The crawl is WARC files of the article pages and of HTML pages of installed packages, each page once a file under
another address and with another number in its text, so that no file's work is another's. Timed is the curation of
the files, from the first to the last part (processes are started before). The estimate multiplies the rates; what a
network, a queue and a slow node cost is not in it.
"""

from __future__ import annotations

import argparse
import gzip
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.extract import load_junk, load_pages
from gristmill.data import BuildConfig
from gristmill.data.build import resolve
from gristmill.data.execute import process_pool
from gristmill.data.steps import curation
from gristmill.data.units import cut, make_part
from gristmill.files import write_json

GOAL = 1.8
CRAWL_BYTES = 100e12  # of compressed WARC
CORES_PER_NODE = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--copies", type=int, default=6, help="WARC files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/build.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        crawl = Path(scratch) / "crawl"
        html_bytes = write_crawl(crawl, options.copies)
        packed = sum(path.stat().st_size for path in crawl.iterdir())
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for number in range(options.rounds):
            for workers in seconds:
                parts = Path(scratch) / f"parts-{number}-{workers}"
                parts.mkdir()
                seconds[workers].append(timed(crawl, parts, workers))
    one, two = median(seconds[1]), median(seconds[2])
    rate = packed / one
    nodes = {n: CRAWL_BYTES / (rate * CORES_PER_NODE * n) / 3600 for n in (10, 100)}
    record: dict[str, Any] = {
        "seconds": {str(workers): taken for workers, taken in seconds.items()},
        "warc_gz_bytes": packed,
        "html_bytes": html_bytes,
        "packed_mb_per_s_core": rate / 1e6,
        "html_mb_per_s_core": html_bytes / one / 1e6,
        "two_workers": one / two,
        "goal": GOAL,
        "hours_for_100_tb": {f"{n} nodes of {CORES_PER_NODE} cores": h for n, h in nodes.items()},
        "core_hours_for_100_tb": CRAWL_BYTES / rate / 3600,
    }
    write_json(options.out, record)
    print(f"one worker {one:.1f} s, two {two:.1f} s: {one / two:.2f}x (goal {GOAL}x)")
    print(f"{rate / 1e6:.2f} MB/s of WARC.gz a core ({html_bytes / one / 1e6:.2f} MB/s of HTML)")
    for n, hours in nodes.items():
        print(f"100 TB of WARC.gz on {n} nodes of {CORES_PER_NODE} cores: {hours:,.0f} hours")


def timed(crawl: Path, parts: Path, workers: int) -> float:
    """Seconds to curate the crawl's files."""
    settings = {"path": str(crawl), "max_bytes": "all", "workers": workers}
    config = BuildConfig.model_validate(settings)
    stage = curation(config)
    units = [unit for group in resolve(config) for unit in cut(group)]
    with process_pool(workers) as pool:
        for future in [pool.submit(_warmed, stage) for _ in range(2 * workers)]:
            future.result()
        start = perf_counter()
        for future in [pool.submit(make_part, unit, stage, parts) for unit in units]:
            future.result()
        return perf_counter() - start


def _warmed(stage: Callable[[Any], Any]) -> None:
    """Loads what the steps need: models and word lists are a worker's, not a page's."""
    from gristmill.data.schema import raw_batch
    from gristmill.data.sources import Item, Raw

    text = "The mill stands where the river turns, and its wheel has sixteen buckets. " * 20
    page = f"<html><body><article><p>{text}</p></article></body></html>".encode()
    item = Item("warc", "w", "w", "http://example.org/", "warm", "web")
    stage(raw_batch([(item, Raw("w/1", html=page, url="http://example.org/"))]))


def write_crawl(directory: Path, copies: int) -> int:
    """`copies` WARC files, gzipped record by record; returns the bytes of HTML in them."""
    directory.mkdir()
    pages = [*load_pages()[0].values(), *load_junk().values()]
    size = 0
    for copy in range(copies):
        with open(directory / f"part-{copy:03}.warc.gz", "wb") as file:
            for number, page in enumerate(pages):
                body = page + f"<p>copy {copy} of page {number}</p>".encode()
                size += len(body)
                file.write(gzip.compress(_record(f"http://h{copy}.example.org/{number}", body), 6))
    return size


def _record(url: str, body: bytes) -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
    out = io.BytesIO()
    out.write(
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
        "WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n".encode()
    )
    out.write(http + b"\r\n\r\n")
    return out.getvalue()


if __name__ == "__main__":
    main()
