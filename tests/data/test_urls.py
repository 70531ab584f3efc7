"""Canonical addresses (RFC 3986's own examples among them), rules about domains and words, word lists."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.blocklist import Blocklist
from gristmill.data.urls import UrlRules, canonical, domain
from gristmill.errors import RequestError

SAME = [
    ("HTTP://www.Example.com/", "http://www.example.com"),  # 6.2.2.1, 6.2.3
    ("http://example.com:80/", "http://example.com/"),
    ("https://example.com:443", "https://example.com/"),
    ("http://example.com/%7Esmith/home.html", "http://EXAMPLE.com/~smith/home.html"),  # 6.2.2.2
    ("http://example.com/a/./b/../../mid/6", "http://example.com/mid/6"),  # 5.2.4
    ("http://example.com/a%c2%b1b", "http://example.com/a%C2%B1b"),
    ("http://example.com/ä", "http://example.com/%C3%A4"),
    ("http://münchen.de/x", "http://xn--mnchen-3ya.de/x"),
    ("http://example.com/p?b=2&a=1", "http://example.com/p?a=1&b=2"),
    ("http://example.com/p?utm_source=x&id=7&fbclid=9#top", "http://example.com/p?id=7"),
    ("http://example.com/p;jsessionid=1A2B", "http://example.com/p"),
    ("http://user:pw@example.com./p", "http://example.com/p"),
    (" http://example.com/p?gclid=1 ", "http://example.com/p"),
]
DIFFERENT = [
    ("http://example.com/p", "https://example.com/p"),
    ("http://example.com/P", "http://example.com/p"),
    ("http://example.com/p", "http://example.com/p/"),
    ("http://example.com/p?a=1", "http://example.com/p?a=2"),
    ("http://example.com/a%2Fb", "http://example.com/a/b"),
    ("http://example.com:8080/", "http://example.com/"),
]


@pytest.mark.parametrize("one, other", SAME)
def test_one_document_has_one_address(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_other_documents_have_others(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    "path", ["g", "./g", "g/", "/g", "../g", "../../g", "../../../g", "g/./h", "g/../h", "."]
)
def test_dots_go_as_the_standard_library_resolves_them(path: str) -> None:
    base = "http://a/b/c/"
    assert canonical(base + path.lstrip("/")) == canonical(urljoin(base, path.lstrip("/")))


@pytest.mark.parametrize(
    "url", ["", "file:///a/b", "mailto:x@example.com", "no url", "http://[::1", "http://a:b/"]
)
def test_what_is_no_web_address_stays(url: str) -> None:
    assert canonical(url) == url


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(), max_size=60),
    st.sampled_from(["", "http://", "https://example.com/", "http://ex.com/?", "//"]),
)
def test_canonical_twice_is_once(text: str, start: str) -> None:
    once = canonical(start + text)
    assert canonical(once) == once


def write(path: Path, text: str) -> list[Path]:
    path.write_text(text, "utf-8")
    return [path]


def test_domains_hold_for_what_is_below_them(tmp_path: Path) -> None:
    block = write(
        tmp_path / "b",
        "# spam\nspam.example\n0.0.0.0 ads.example localhost\n*.Bad.Example # all\n\nwww.x.de\n",
    )
    rules = UrlRules.load(block=block)
    for url in [
        "http://spam.example/",
        "https://a.b.spam.example:8080/x",
        "http://ADS.example",
        "http://x.de/",
        "http://q.bad.example",
    ]:
        assert rules.check(url) == "url_blocked", url
    for url in [
        "http://notspam.example/",
        "http://example/",
        "http://spam.example.org/",
        "",
        "http://localhost/",
    ]:
        assert rules.check(url) == "", url
    only = UrlRules.load(allow=write(tmp_path / "a", "gov.uk\n"))
    assert (
        only.check("https://www.gov.uk/x") == ""
        and only.check("https://gov.uk.example/") == "url_not_allowed"
    )


def test_words_in_addresses(tmp_path: Path) -> None:
    rules = UrlRules.load(
        strict=write(tmp_path / "s", "hotspam\n"),
        hard=write(tmp_path / "h", "casino\n"),
        soft=write(tmp_path / "w", "free\nbonus\n"),
    )
    assert rules.check("http://ho-t.spam.example/") == "url_strict_word"
    assert rules.check("http://example.com/best-Casino/") == "url_hard_word"
    assert rules.check("http://example.com/best%2Dcasino%2D1") == "url_hard_word"
    assert rules.check("http://example.com/casinos") == ""
    assert rules.check("http://example.com/free-free") == ""
    assert rules.check("http://example.com/free/bonus") == "url_soft_words"


@pytest.mark.parametrize(
    "text, says",
    [
        ("fine.example\nhttp://bad.example/\n", ":2: 'http://bad.example/' is no domain"),
        ("two words\n", ":1: 'two words' is no domain"),
        ("a..b\n", ":1: 'a..b' is no domain"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RequestError, match=re.escape(says)):
        UrlRules.load(block=write(tmp_path / "list", text))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        UrlRules.load(block=[tmp_path / "none"])
    (tmp_path / "latin").write_bytes(b"caf\xe9.example\n")
    with pytest.raises(RequestError, match="no UTF-8"):
        UrlRules.load(block=[tmp_path / "latin"])
    with pytest.raises(RequestError, match=":1: 'two words' is no single word"):
        UrlRules.load(hard=write(tmp_path / "w", "two words\n"))
    with pytest.raises(RequestError, match="holds no word"):
        Blocklist.load(write(tmp_path / "empty", "# nothing\n"))
    with pytest.raises(RequestError, match=":2: '!!!' has no letter"):
        Blocklist.load(write(tmp_path / "marks", "word\n!!!\n"))


def test_domain() -> None:
    assert domain("https://www.Example.co.uk:8080/x") == "example.co.uk"
    assert domain("no url") == "" and domain("http://[::1") == ""


def test_words_of_a_list() -> None:
    found = Blocklist(["bad word", "ass", "C++", "敏感", "naïve"]).count(
        "A BAD  \n word, class assessment ass. C++! 这是敏感词敏感 Nai\u0308ve"
    )
    assert found == {"ass": 1, "bad word": 1, "c++": 1, "naïve": 1, "敏感": 2}
    assert Blocklist([]).count("anything") == {}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.from_regex(r"[ab]{1,3}( [ab]{1,2})?", fullmatch=True), min_size=1, max_size=8),
    st.text("ab ,\n", max_size=60),
)
def test_a_list_finds_what_regular_expressions_find(entries: list[str], text: str) -> None:
    plain = " ".join(text.split())
    expected = {
        e: len(re.findall(rf"(?<!\w)(?={re.escape(e)}(?!\w))", plain)) for e in set(entries)
    }
    assert Blocklist(entries).count(text) == {e: n for e, n in sorted(expected.items()) if n}


ANY = st.text(st.characters(), max_size=30)  # lone surrogates too


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY, min_size=1, max_size=5), ANY)
def test_any_list_and_text(entries: list[str], text: str) -> None:
    assert all(n > 0 for n in Blocklist(entries).count(text).values())
