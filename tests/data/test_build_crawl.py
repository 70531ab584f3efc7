"""A list of a crawl's files as a source: what is there is read, what is not is told."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from gristmill.data import Document, documents
from gristmill.data.build import BuildConfig, run
from gristmill.errors import RequestError

TALES = {
    "one": "The miller counts his sacks at dusk, and each one that is missing he blames upon the mice below.",
    "two": "A ferry crosses the sound six times a day, unless the captain has quarrelled with his brother again.",
    "three": "Nobody had wound the tower clock for years, yet at noon it struck, and all of the pigeons rose up.",
}


def wet(name: str) -> bytes:
    text = f"{TALES[name]}\nIt was told again in the year after, with another ending.\n".encode()
    head = (
        "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\n"
        f"WARC-Target-URI: http://{name}.example.org/\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text + b"\r\n\r\n"


def crawl(root: Path) -> Path:
    """Two of the three files that the list names, one below a folder and one beside the list."""
    (root / "crawl-data").mkdir(parents=True)
    (root / "crawl-data" / "one.warc.wet.gz").write_bytes(gzip.compress(wet("one")))
    (root / "two.warc.wet.gz").write_bytes(gzip.compress(wet("two")))
    names = ["crawl-data/one", "crawl-data/two", "crawl-data/three", "crawl-data/three"]
    listing = root / "wet.paths.gz"
    listing.write_bytes(gzip.compress("".join(f"{n}.warc.wet.gz\n" for n in names).encode()))
    return listing


def build(out: Path, source: Path, **settings: Any) -> dict[str, Document]:
    config = BuildConfig(
        path=str(source), workers=1, profile="docs", limits={"words": "off"}, **settings
    )
    directory = run(config, {}, out).outputs["documents"]
    return {
        row.source: row
        for part in ("train", "heldout", "dropped")
        for row in documents(directory, part)
    }


def test_a_list_names_the_files_to_read(tmp_path: Path) -> None:
    rows = build(tmp_path / "out", crawl(tmp_path / "crawl"))
    assert {source: row.drop_reason for source, row in rows.items()} == {
        "wet.paths.gz/crawl-data/one.warc.wet.gz/http://one.example.org/": "",
        "wet.paths.gz/two.warc.wet.gz/http://two.example.org/": "",
        "wet.paths.gz/crawl-data/three.warc.wet.gz": "missing",
    }
    (missing,) = (row for row in rows.values() if row.drop_reason)
    assert missing.details["looked_in"] == str(tmp_path / "crawl")


def test_the_files_may_lie_elsewhere(tmp_path: Path) -> None:
    listing = crawl(tmp_path / "crawl")
    alone = tmp_path / "lists"
    alone.mkdir()
    listing.rename(alone / listing.name)
    with pytest.raises(RequestError, match="missing 3"):
        build(tmp_path / "out", alone / listing.name)
    for place in (alone / listing.name, alone):  # the list, or a folder that holds it
        rows = build(tmp_path / place.name, place, crawl_root=str(tmp_path / "crawl"))
        assert sum(not row.drop_reason for row in rows.values()) == 2
        assert sum(row.drop_reason == "missing" for row in rows.values()) == 1
    with pytest.raises(RequestError, match="is no folder"):
        build(tmp_path / "out", alone, crawl_root=str(tmp_path / "nowhere"))


def test_a_list_in_a_folder_reads_nothing_twice(tmp_path: Path) -> None:
    folder = crawl(tmp_path / "crawl").parent
    (folder / "odd.paths").write_text("../../etc/passwd\n")
    rows = build(tmp_path / "out", folder)
    assert {source: row.drop_reason for source, row in rows.items()} == {
        "crawl/crawl-data/one.warc.wet.gz/http://one.example.org/": "",
        "crawl/two.warc.wet.gz/http://two.example.org/": "",
        "crawl/wet.paths.gz/crawl-data/three.warc.wet.gz": "missing",
        "crawl/wet.paths.gz": "crawl_list",
        "crawl/odd.paths": "unreadable",
    }
    with pytest.raises(RequestError, match="leads out of"):
        build(tmp_path / "out2", folder / "odd.paths")
