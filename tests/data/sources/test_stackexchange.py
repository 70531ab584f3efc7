"""Stack Exchange dumps: questions joined with their good answers, in one pass, wherever those stand."""

import gzip
import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import quoteattr

from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.sources.markup import fragment_text
from gristmill.data.sources.stackexchange import read_stackexchange


def row(**fields: object) -> str:
    attributes = " ".join(
        f"{name}={quoteattr(str(value), {chr(10): '&#xA;'})}" for name, value in fields.items()
    )
    return f"  <row {attributes} />\n"


def posts(rows: list[str]) -> str:
    return '\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n' + "".join(rows) + "</posts>"


QUESTION = {"Id": 1, "PostTypeId": 1, "AcceptedAnswerId": 12, "Score": 5, "Title": "How to sort?"}
QUESTION |= {
    "Body": "<p>With <code>sort</code>?</p><pre><code>x &lt; y\n</code></pre>",
    "Tags": "<python><sorting>",
}
QUESTION |= {"CreationDate": "2010-01-02T03:04:05.678", "ContentLicense": "CC BY-SA 2.5"}
GOOD = {
    "Id": 11,
    "PostTypeId": 2,
    "ParentId": 1,
    "Score": 9,
    "Body": "<p>Nine</p>",
    "ContentLicense": "CC BY-SA 4.0",
}
ACCEPTED = {
    "Id": 12,
    "PostTypeId": 2,
    "ParentId": 1,
    "Score": 0,
    "Body": "<ul><li>a</li><li>b</li></ul>",
}
POOR = {"Id": 13, "PostTypeId": 2, "ParentId": 1, "Score": 2, "Body": "<p>Poor</p>"}
ALONE = {"Id": 2, "PostTypeId": 1, "Score": 1, "Title": "Alone", "Body": "<p>?</p>"}
WIKI = {"Id": 3, "PostTypeId": 5, "Body": "tag"}


def site(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "cooking.stackexchange.com"
    folder.mkdir(exist_ok=True)
    (folder / "Posts.xml").write_text(text, "utf-8")
    return folder


def test_a_question_with_its_answers(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    rows = [row(**fields) for fields in (GOOD, POOR, QUESTION, ALONE, WIKI, ACCEPTED)]
    first, second = read_stackexchange(site(tmp_path, posts(rows)), counts=counts)
    assert first.text == (
        "# How to sort?\n\nWith `sort`?\n\n```\nx < y\n```\n\n## Accepted answer\n\n- a\n- b\n\n## Answer\n\nNine\n"
    )
    assert first.url == "https://cooking.stackexchange.com/questions/1"
    assert (first.license, first.date, first.kind) == (
        "CC-BY-SA-2.5 AND CC-BY-SA-4.0",
        "2010-01-02T03:04:05Z",
        "qa",
    )
    assert first.detail["tags"] == ["python", "sorting"] and first.detail["answers_in_all"] == 3
    assert second.reason == "no_answer"
    assert counts == {"post type 5": 1, "answer left out": 1}
    json.dumps(first.detail)


def test_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    rows = []
    for question in range(1, 60):
        rows.append(row(**{**QUESTION, "Id": question, "AcceptedAnswerId": question + 1000}))
        rows.append(
            row(
                Id=question + 1000,
                PostTypeId=2,
                ParentId=question,
                Score=question % 7,
                Body=f"<p>{question}</p>",
            )
        )
        rows.append(
            row(Id=question + 2000, PostTypeId=2, ParentId=question, Score=3, Body="<p>third</p>")
        )
    whole = list(read_stackexchange(site(tmp_path, posts(rows))))
    random.Random(1).shuffle(rows)
    assert list(read_stackexchange(site(tmp_path, posts(rows)))) == whole
    packed = tmp_path / "cooking.stackexchange.com" / "Posts.xml.gz"
    packed.write_bytes(gzip.compress(posts(rows).encode()))
    assert [raw.text for raw in read_stackexchange(packed)] == [raw.text for raw in whole]


def test_bad_rows_bombs_and_other_files(tmp_path: Path) -> None:
    rows = [row(**QUESTION), "  <row Id='x' PostTypeId='1' />\n", "  <row Id=>\n", row(**ACCEPTED)]
    rows += ["  <row Id='&lol;' />\n", row(**{**GOOD, "Body": "x" * 3_000_000})]
    found = list(read_stackexchange(site(tmp_path, posts(rows))))
    assert [raw.reason for raw in found] == [
        "bad_record",
        "bad_record",
        "bad_record",
        "too_large",
        "",
    ]
    assert found[0].source == "cooking.stackexchange.com/Posts.xml:4"
    for text in (
        "hello",
        "",
        "<posts>",
        '<!DOCTYPE x [<!ENTITY a "b">]>\n<posts>' + row(**QUESTION),
    ):
        (raw,) = read_stackexchange(site(tmp_path, text))
        assert raw.reason == "unreadable"
    archive = tmp_path / "x.7z"
    archive.write_bytes(b"7z")
    (raw,) = read_stackexchange(archive)
    assert raw.reason == "unsupported_format" and "7z x" in raw.detail["cure"]
    (raw,) = read_stackexchange(tmp_path)
    assert raw.reason == "unreadable"


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    rows = [
        row(**{**QUESTION, "Id": number, "Body": "<p>" + "word " * 2000 + "</p>"})
        for number in range(1, 3000)
    ]
    place = site(tmp_path, posts(rows))
    del rows
    tracemalloc.start()
    found = sum(1 for _ in read_stackexchange(place))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 2999
    assert peak < 8_000_000 < (place / "Posts.xml").stat().st_size


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<>/abpreulicode&;= \n\"'!-", max_size=200))
def test_any_html_is_read(html: str) -> None:
    assert isinstance(fragment_text(html), str)


def test_deep_and_wide_fragments() -> None:
    assert fragment_text("<p>a</p>" * 20_000).count("a") == 20_000
    assert fragment_text("<ol><li>a<ol><li>b</li></ol></li><li>c</li></ol>") == "1. a\n  1. b\n2. c"
    quote = "<blockquote><p>a</p><p>b</p></blockquote><h2>H</h2>t"
    assert fragment_text(quote) == "> a\n\n> b\n\n## H\n\nt"
