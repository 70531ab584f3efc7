"""MediaWiki dumps: what comes out, and what damage, bombs and other files cost."""

import bz2
import gzip
import tracemalloc
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

from gristmill.data.sources import wikipedia
from gristmill.data.sources.wikipedia import read_wikipedia

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo><sitename>Wikipedia</sitename><base>https://de.wikipedia.org/wiki/Hauptseite</base>
    <namespaces><namespace key="0" case="first-letter" /><namespace key="6" case="x">Datei</namespace></namespaces>
  </siteinfo>
"""


def page(title: str, text: str, ns: int = 0, extra: str = "", model: str = "wikitext") -> str:
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{ns}</ns>\n    <id>7</id>\n    {extra}\n"
        f"    <revision><id>9</id><timestamp>2024-05-06T07:08:09Z</timestamp><model>{model}</model>"
        f'<text bytes="1" xml:space="preserve">{escape(text)}</text></revision>\n  </page>\n'
    )


PAGES = [
    page(
        "Größe & Maß",
        "'''Größe''' <ref>x</ref> ist [[Datei:a.png|b]]viel.\n== Teil ==\nText <page> im Text.",
    ),
    page("Weg", "#REDIRECT [[Größe]]", extra='<redirect title="Größe" />'),
    page("Bank", "Bank: {{Begriffsklärung}}"),
    page("Diskussion:X", "x", ns=1),
    page("Modul", "return 1", model="Scribunto"),
    page("Leer", "{{nur|Vorlagen}}"),
]


def dump(folder: Path, data: bytes | str, name: str = "dump.xml") -> Path:
    place = folder / name
    place.write_bytes(data.encode() if isinstance(data, str) else data)
    return place


def test_articles_and_reasons(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    found = list(
        read_wikipedia(dump(tmp_path, HEAD + "".join(PAGES) + "</mediawiki>"), counts=counts)
    )
    assert [raw.reason for raw in found] == [
        "",
        "redirect",
        "disambiguation",
        "not_wikitext",
        "no_text",
    ]
    first = found[0]
    assert first.text == "# Größe & Maß\n\nGröße ist viel.\n\n## Teil\n\nText im Text.\n"
    assert first.url == "https://de.wikipedia.org/wiki/Gr%C3%B6%C3%9Fe_&_Ma%C3%9F"
    assert (first.date, first.license, first.kind) == (
        "2024-05-06T07:08:09Z",
        "CC-BY-SA-4.0",
        "wiki",
    )
    assert found[1].detail["to"] == "Größe"
    assert counts == {"namespace 1": 1}


def test_multistream_bzip2_and_gzip_read_like_plain(tmp_path: Path) -> None:
    parts = [HEAD, *PAGES, "</mediawiki>"]
    plain = [r.text for r in read_wikipedia(dump(tmp_path, "".join(parts)))]
    packed = b"".join(bz2.compress(part.encode()) for part in parts)
    assert [r.text for r in read_wikipedia(dump(tmp_path, packed, "d.bz2"))] == plain
    packed = b"".join(gzip.compress(part.encode()) for part in parts)
    assert [r.text for r in read_wikipedia(dump(tmp_path, packed, "d.gz"))] == plain


def test_chunk_borders_change_nothing(tmp_path: Path, monkeypatch) -> None:
    place = dump(tmp_path, HEAD + "".join(PAGES) + "</mediawiki>")
    whole = list(read_wikipedia(place))
    for size in (len(HEAD) + 7, 1000, 1001, 1013):
        monkeypatch.setattr(wikipedia, "_CHUNK", size)
        assert list(read_wikipedia(place)) == whole


def test_a_damaged_page_costs_that_page(tmp_path: Path) -> None:
    broken = PAGES[0].replace("</ns>", "</nss>")
    cut_off = PAGES[0][:200]
    text = (
        HEAD
        + broken
        + cut_off
        + PAGES[0]
        + page("Bombe", "x").replace("x</text>", "&lol;</text>")
        + PAGES[0]
    )
    reasons = [raw.reason for raw in read_wikipedia(dump(tmp_path, text))]
    assert reasons == ["bad_record", "bad_record", "", "bad_record", ""]


def test_entity_bombs_and_other_files_are_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE mediawiki [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + HEAD + PAGES[0]
    for name, data in {
        "bomb": bomb,
        "text": "hello",
        "html": "<html><page>x</page>",
        "empty": "",
    }.items():
        (raw,) = read_wikipedia(dump(tmp_path, data, name))
        assert raw.reason == "unreadable", name
    (raw,) = read_wikipedia(tmp_path / "absent")
    assert raw.reason == "unreadable"


def test_a_truncated_archive_gives_what_came_before(tmp_path: Path) -> None:
    packed = bz2.compress((HEAD + PAGES[0]).encode()) + bz2.compress((PAGES[0] * 50).encode())[:-20]
    found = list(read_wikipedia(dump(tmp_path, packed, "cut.bz2")))
    assert found[0].reason == "" and found[-1].reason == "broken_archive"


def test_a_huge_page_is_skipped_in_little_memory(tmp_path: Path) -> None:
    place = dump(tmp_path, HEAD + page("Riese", "wort " * 8_000_000) + PAGES[0])
    tracemalloc.start()
    found = list(read_wikipedia(place, max_bytes=1_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [raw.reason for raw in found] == ["too_large", ""]
    assert found[0].detail["bytes"] > 40_000_000
    assert peak < 12_000_000
