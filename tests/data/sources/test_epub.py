"""EPUB books made here byte by byte: order, metadata, what is left out, bombs and damage."""

import zipfile
from pathlib import Path

import pytest

from gristmill.data.sources import epub
from gristmill.data.sources.epub import read_epub

CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
OPF = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>A Book</dc:title><dc:creator>Ann</dc:creator>
<dc:creator>Bo</dc:creator><dc:language>en</dc:language><dc:date>1999-04-05T00:00:00</dc:date>
<dc:rights>https://creativecommons.org/licenses/by/4.0/</dc:rights></metadata>
<manifest><item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="cover" href="cover.xhtml" media-type="application/xhtml+xml"/>
<item id="b" href="two%20b.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="one.xhtml" media-type="application/xhtml+xml"/>
<item id="n" href="notes.xhtml" media-type="application/xhtml+xml"/>
<item id="i" href="a.png" media-type="image/png"/></manifest>
<spine><itemref idref="cover"/><itemref idref="nav"/><itemref idref="a"/><itemref idref="b"/>
<itemref idref="n" linear="no"/><itemref idref="i"/><itemref idref="nothing"/></spine></package>"""
XHTML = '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>t</title></head><body>{}</body></html>'
CHAPTERS = {
    "OEBPS/nav.xhtml": "<nav>gone</nav>",
    "OEBPS/cover.xhtml": "gone",
    "OEBPS/one.xhtml": "<h2>One</h2><p>Naïve <i>text</i>,<br/>two lines.</p>",
    "OEBPS/two b.xhtml": "<h2>Two</h2><p>End.</p>",
    "OEBPS/notes.xhtml": "gone",
}


def book(place: Path, changes: dict[str, str | bytes | None] | None = None) -> Path:
    members: dict[str, str | bytes | None] = {
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": OPF,
    }
    members |= {name: XHTML.format(body) for name, body in CHAPTERS.items()}
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (members | (changes or {})).items():
            if data is not None:
                archive.writestr(name, data)
    return place


def test_a_book(tmp_path: Path) -> None:
    (raw,) = read_epub(book(tmp_path / "b.epub"))
    assert raw.text == "# A Book\n\n## One\n\nNaïve text,\ntwo lines.\n\n## Two\n\nEnd.\n"
    assert (raw.kind, raw.title, raw.license, raw.date) == (
        "book",
        "A Book",
        "CC-BY-4.0",
        "1999-04-05",
    )
    assert raw.detail["creators"] == ["Ann", "Bo"] and raw.detail["stated_language"] == "en"


def test_a_missing_or_huge_chapter_costs_that_chapter(tmp_path: Path) -> None:
    changes = {"OEBPS/one.xhtml": None, "OEBPS/two b.xhtml": bytes(30_000_000)}
    found = list(read_epub(book(tmp_path / "b.epub", changes)))
    assert [raw.reason for raw in found] == ["unreadable", "too_large", "no_text"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"META-INF/container.xml": None}, "unreadable"),
        ({"META-INF/container.xml": "<a"}, "unreadable"),
        (
            {"META-INF/container.xml": '<!DOCTYPE x [<!ENTITY a "b">]>' + CONTAINER[21:]},
            "unreadable",
        ),
        ({"OEBPS/book.opf": None}, "unreadable"),
        ({"OEBPS/book.opf": "<package/>"}, "no_text"),
        ({"META-INF/encryption.xml": "<e/>", "META-INF/rights.xml": "<r/>"}, "encrypted"),
    ],
)
def test_books_that_cannot_be_read(tmp_path: Path, changes: dict, reason: str) -> None:
    assert [raw.reason for raw in read_epub(book(tmp_path / "b.epub", changes))] == [reason]


def test_other_files_and_damage(tmp_path: Path) -> None:
    data = book(tmp_path / "b.epub").read_bytes()
    for name, content in {"text": b"hello", "empty": b"", "cut": data[: len(data) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        assert [raw.reason for raw in read_epub(tmp_path / name)] == ["unreadable"]
    assert [raw.reason for raw in read_epub(tmp_path / "absent")] == ["unreadable"]
    for place in range(
        0, len(data), 37
    ):  # a damaged byte anywhere is a reason or harmless, never an error
        (tmp_path / "d").write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        assert list(read_epub(tmp_path / "d"))


def test_a_book_of_many_large_chapters_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(epub, "MAX_BOOK_BYTES", 500)
    assert [raw.reason for raw in read_epub(book(tmp_path / "b.epub"))] == [""]
    monkeypatch.setattr(epub, "MAX_BOOK_BYTES", 100)
    assert [raw.reason for raw in read_epub(book(tmp_path / "b.epub"))] == ["too_large"]
