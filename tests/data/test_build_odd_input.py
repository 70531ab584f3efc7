"""Odd input that readers, Arrow or the report could trip over: the build goes on, and each file has its reason."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gristmill.cli.story import explain
from gristmill.data import Document, documents
from gristmill.data.build import BuildConfig, resolve, run
from gristmill.data.curate import Curate, Draft
from gristmill.data.html import html_text
from gristmill.data.schema import document_id, raw_batch
from gristmill.data.sources import Item, Raw
from gristmill.data.sources.epub import MAX_BOOK_BYTES, MAX_MEMBER_BYTES, read_epub
from gristmill.data.sources.opening import Damaged, opened
from gristmill.errors import RequestError

MILL = "The mill stands where the river turns, and its wheel of sixteen oaken blades goes round both day and night."
FORGE = "A forge needs air before it needs iron, so two boys work the bellows from first light until the coals glow."
CLOCK = "Nobody had wound the clock in the tower for years; still it struck at noon, and all the pigeons rose up."


def build(folder: Path, out: Path, **settings: Any) -> list[Document]:
    config = BuildConfig(path=str(folder), workers=1, profile="docs", **settings)
    directory = run(config, {}, out).outputs["documents"]
    rows = [row for part in ("train", "heldout", "dropped") for row in documents(directory, part)]
    assert len({row.id for row in rows}) == len(rows), "ids name documents, so they are unique"
    for row in rows:
        assert explain(row), "each can be explained"
    return rows


def test_lone_surrogates_in_labels_reach_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    lone = {name: f"http://x.example/\ud800{name}" for name in ("title", "url", "license", "date")}
    rows = [{"text": MILL, **lone}, {"text": FORGE, "other": "\udfff", "more": {"\ud801": 1}}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = sorted(build(folder, tmp_path / "out"), key=lambda row: row.source)
    assert first.details["title"] == "http://x.example/\ufffdtitle"
    assert first.url == "http://x.example/\ufffdurl"
    assert second.details["columns"] == {"other": "\ufffd", "more": {"\ufffd": 1}}


def test_columns_named_like_our_own_words_change_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    odd = {"language": "en", "removed": "yes", "duplicate_of": "x", "nearly": 5, "bytes": "many"}
    rows = [{"text": MILL, **odd}, {"text": FORGE, **odd}, {"text": "short", **odd}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {row.details["columns"]["nearly"] for row in build(folder, tmp_path / "out")} == {5}


def warc(*pages: tuple[str, str]) -> bytes:
    records = []
    for url, text in pages:
        body = f"<html><body><p>{text}</p><p>{text[::-1]}</p></body></html>"
        block = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{body}".encode()
        records.append(
            f"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nWARC-Target-URI: {url}\r\n"
            f"Content-Length: {len(block)}\r\n\r\n".encode()
            + block
            + b"\r\n\r\n"
        )
    return b"".join(records)


def test_a_page_crawled_twice_has_two_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(warc(("http://a.example/", MILL), ("http://a.example/", FORGE)))
    rows = build(path, tmp_path / "out", heldout_fraction=0)
    assert sorted(row.source for row in rows) == [
        "a.warc/http://a.example/",
        "a.warc/http://a.example/#2",
    ]


def test_an_address_that_is_none_does_not_end_the_report(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(warc(("http://[::1/x", MILL * 3), ("http://a.example:port/", FORGE * 3)))
    build(path, tmp_path / "out", heldout_fraction=0)
    assert "a.example" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_repository_is_read_anew_when_it_has_a_new_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        subprocess.run(["git", "-C", str(folder / "repo"), *who, *arguments], check=True)

    folder = tmp_path / "notes"
    (folder / "repo").mkdir(parents=True)
    (folder / "note.md").write_text(MILL)
    module = folder / "repo" / "m.py"
    module.write_text(
        '"""Grinds the grain that the farmers bring."""\n\n\ndef grind(grain):\n    return sorted(grain)\n'
    )
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    rows = {row.source: row for row in build(folder, tmp_path / "out", limits={"words": "off"})}
    first = rows["notes/repo/m.py"]
    assert not first.drop_reason and first.details["programming_language"] == "Python"
    module.write_text(module.read_text().replace("grain", "wheat"))
    git("commit", "-q", "-a", "-m", "two")
    rows = {row.source: row for row in build(folder, tmp_path / "out", limits={"words": "off"})}
    assert "wheat" in rows["notes/repo/m.py"].text


def test_a_file_given_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.md").write_text(MILL)
    (tmp_path / "b.md").write_text(FORGE)
    config = BuildConfig(sources=("b.md", "a.md", "./b.md", str(tmp_path / "a.md")), workers=1)
    assert [group.name for group in resolve(config)] == ["b.md", "a.md"]
    directory = run(config, {}, tmp_path / "out").outputs["documents"]
    rows = [row for part in ("train", "heldout", "dropped") for row in documents(directory, part)]
    assert sorted(row.source for row in rows) == ["a.md", "b.md"]


def test_a_build_in_its_own_source_does_not_read_itself(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(MILL)
    (tmp_path / "b.md").write_text(FORGE)
    build(tmp_path, tmp_path / "out", limits={"words": "off"})
    rows = build(tmp_path, tmp_path / "out", limits={"words": "off"})
    assert sorted((row.source.partition("/")[2], row.drop_reason) for row in rows) == [
        ("a.md", ""),
        ("b.md", ""),
        ("out", "build"),
    ]


def test_a_file_without_any_document_is_listed(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text(MILL)
    (folder / "b.md").write_text(FORGE)
    (folder / "blank.jsonl").write_text("\n\n\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "none.parquet")
    reasons = {row.source: row.drop_reason for row in build(folder, tmp_path / "out")}
    assert reasons["notes/none.parquet"] == reasons["notes/blank.jsonl"] == "no_text"


def test_a_text_that_trips_a_step_is_dropped_and_the_rest_goes_on() -> None:
    def trips(draft: Draft) -> None:
        if draft.text == MILL:
            raise RecursionError("too deep")
        draft.language = "en"

    item = Item("file", "/x", "x", "file:///x", "g", "text")
    raws = [Raw("one", MILL), Raw("two", FORGE)]
    stage = Curate(None, "key")
    stage.__dict__["_steps"] = (trips,)  # what cached_property would make
    rows = stage(raw_batch([(item, raw) for raw in raws])).to_pylist()
    assert [row["drop_reason"] for row in rows] == ["failed", ""]
    assert json.loads(rows[0]["meta"])["error"] == "RecursionError: too deep"
    assert rows[0]["id"] == document_id("file:///x", "one")


def test_a_missing_extra_ends_the_build_rather_than_losing_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4\n")
    with pytest.raises(RequestError, match="pypdf is not installed"):
        run(BuildConfig(path=str(tmp_path / "a.pdf"), workers=1), {}, tmp_path / "out")


def test_a_bomb_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(400):
            file.write(bytes(1_000_000))
    given = 0
    with opened(path) as stream, pytest.raises(Damaged, match="expands more than 200 to 1"):
        while data := stream.some(1 << 20):
            given += len(data)
    assert given < 390_000_000


def test_a_book_of_bombs_costs_one_book(tmp_path: Path) -> None:
    path = tmp_path / "a.epub"
    count = 3 * MAX_BOOK_BYTES // MAX_MEMBER_BYTES
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as book:
        book.writestr("META-INF/container.xml", '<c><rootfile full-path="p.opf"/></c>')
        items = [f'<item id="i{n}" href="c.xhtml?{n}" media-type="x/html"/>' for n in range(count)]
        refs = [f'<itemref idref="i{n % count}"/>' for n in range(10 * count)]
        book.writestr("p.opf", f"<package>{''.join(items + refs)}</package>")
        for n in range(count):
            book.writestr(f"c.xhtml?{n}", bytes(MAX_MEMBER_BYTES + 1))
    *chapters, last = read_epub(path)
    assert {raw.reason for raw in chapters} == {"too_large"}
    assert (len(chapters), last.reason) == (MAX_BOOK_BYTES // MAX_MEMBER_BYTES + 1, "too_large")


@pytest.mark.parametrize(
    "page",
    [
        "<!--" * 100_000,
        "<![CDATA[" * 100_000,
        "<!" * 100_000,
        "<?" * 100_000,
        "</a " * 100_000,
        "<script>" + "</" * 100_000,
        "<svg>" * 50_000 + "</nav>" * 50_000,
        "<svg>" * 50_000 + "<body>" * 50_000,
    ],
)
def test_no_page_takes_more_than_linear_time(page: str) -> None:
    start = time.process_time()
    html_text(f"<p>{MILL}</p>{page}")
    assert time.process_time() - start < 20, "a quadratic parser takes minutes"


def test_what_no_tag_closes_is_still_text() -> None:
    assert MILL in html_text(f"<p>a</p><!-- {MILL} <b " + "x" * 5000)
    assert html_text(f"<p>{MILL}&#{'9' * 5000};</p>") == f"{MILL}\ufffd\n"
