"""Extraction against the text that people took out of real pages, and against browsers' decoding rules."""

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.extract import load_pages, quality
from gristmill.data.extract import Watchdog, extract
from gristmill.data.extract.cheap import cheap
from gristmill.data.extract.decoding import decode_page

# Floors on the article set, just under what was measured (0.9725; trafilatura 2.3.1 in precision mode 0.9695).
F1_FLOOR = 0.970
ARTICLE = "".join(
    f"<p>Sentence number {n} tells the reader a little more of the story.</p>" for n in range(20)
)


@pytest.fixture(scope="module")
def dog():
    with Watchdog(deadline_seconds=20) as dog:
        yield dog


def test_quality_on_real_pages_is_not_below_trafilaturas(dog):
    pages, truth = load_pages()
    got = {key: extract(page, watchdog=dog) for key, page in pages.items()}
    assert {page.reason for page in got.values()} == {""}
    assert {page.method for page in got.values()} == {"blocks", "trafilatura"}
    ours = quality({key: page.text for key, page in got.items()}, truth)
    assert ours["f1"] >= F1_FLOOR, ours


def test_the_text_is_the_same_in_any_order_and_any_child(dog):
    pages, _ = load_pages()
    some = list(pages.items())[:12]
    first = {key: extract(page, watchdog=dog) for key, page in some}
    with Watchdog(deadline_seconds=20) as other:
        assert {key: extract(page, watchdog=other) for key, page in reversed(some)} == first


def test_the_gate_sees_the_quick_text_and_stops_the_careful_pass(dog):
    seen = []

    def gate(text: str) -> str:
        seen.append(text)
        return "too_dull"

    got = extract(
        f"<html lang=en><title>A</title><body>{ARTICLE}".encode(), gate=gate, watchdog=dog
    )
    assert (got.reason, got.method, got.title) == ("too_dull", "resiliparse", "A")
    assert seen == [got.text] and "Sentence number 19" in got.text
    assert extract(ARTICLE.encode(), gate=lambda _: "", watchdog=dog).reason == ""


def test_navigation_and_comments_stay_out(dog):
    page = (
        "<html><head><title>T &amp; U</title></head><body>"
        "<nav><a href=/>Home page of this site</a> <a href=/b>Another page of it</a></nav>"
        f"<article><h1>The heading</h1>{ARTICLE}</article>"
        "<div class=comments><p>A reader writes a long and angry comment below the article here.</p></div>"
        "<footer>All rights reserved by the publisher</footer></body></html>"
    )
    got = extract(page.encode(), watchdog=dog)
    assert got.title == "T & U"
    assert got.text.count("Sentence number") == 20
    for frame in ("Another page", "angry comment", "rights reserved"):
        assert frame not in got.text


def test_a_page_of_scripts_has_no_text(dog):
    got = extract(
        b"<html><script>var a = 1;</script><body><img src=a.png></body></html>", watchdog=dog
    )
    assert (got.reason, got.text) == ("no_text", "")


TEXT = "Größe, naïve café"


@pytest.mark.parametrize(
    ("data", "charset", "text", "encoding"),
    [
        (codecs.BOM_UTF8 + TEXT.encode(), "iso-8859-1", TEXT, "utf-8"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), "utf-8", TEXT, "utf-16-le"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "", TEXT, "utf-16-be"),
        (
            TEXT.encode("latin-1"),
            "ISO-8859-1",
            TEXT,
            "cp1252",
        ),  # browsers read Latin-1 as Windows-1252
        (b"\x93quoted\x94", "latin1", "“quoted”", "cp1252"),
        ("Привет".encode("koi8-r"), "koi8-r", "Привет", "koi8-r"),
        (b"<meta charset=windows-1251>" + "Привет".encode("cp1251"), "", None, "cp1251"),
        (
            b'<meta http-equiv=x content="text/html; charset=Shift_JIS">' + "日本".encode("cp932"),
            "",
            None,
            None,
        ),
        (TEXT.encode(), "", TEXT, "utf-8"),
        (TEXT.encode(), "no-such-charset", TEXT, "utf-8"),
        (b"<meta charset=utf-16>" + TEXT.encode(), "", None, "utf-8"),
    ],
)
def test_decoding_follows_the_browsers_order(data, charset, text, encoding):
    got, name = decode_page(data, charset)
    if encoding is not None:
        assert name == encoding
    if text is None:
        assert any(word in got for word in ("Привет", "日本", TEXT))
    else:
        assert got == text


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["", "utf-8", "utf-16", "shift_jis", "x", "\0"]))
def test_decoding_never_fails(data, charset):
    text, _ = decode_page(data, charset)
    assert "\0" not in text


@pytest.mark.parametrize(
    ("html", "license", "how"),
    [
        (
            '<a rel="license" href="https://creativecommons.org/licenses/by-sa/4.0/">x</a>',
            "CC-BY-SA-4.0",
            "rel",
        ),
        ('<link href="http://e.org/terms" rel=license>', "http://e.org/terms", "rel"),
        ('<a href="https://creativecommons.org/publicdomain/zero/1.0/">x</a>', "CC0-1.0", "link"),
        (
            '<a href="http://creativecommons.org/licenses/by/3.0/">a</a>'
            '<a href="http://creativecommons.org/licenses/by-nc/3.0/">b</a>',
            "",
            "",
        ),
        ('<a href="/license">x</a>', "", ""),
    ],
)
def test_licences_that_the_page_states(html, license, how):
    got = cheap(f"<html><body>{ARTICLE}{html}</body></html>")
    assert (got.license, got.license_from) == (license, how)


def test_language_and_date_of_the_head():
    got = cheap(
        '<html class=a lang="pt-BR"><head><meta content="2024-05-01T12:00:00+02:00" '
        'property="article:published_time"></head><body><p>Olá</p>'
    )
    assert (got.language, got.date) == ("pt-br", "2024-05-01T10:00:00Z")
