"""Tables: rows against the json, csv and pyarrow that wrote them, and bad rows with their numbers."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gristmill.data.sources.tables import read_csv, read_jsonl, read_parquet, row_document


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("plain", "plain"),
        ({"body": "b", "text": "t"}, "t"),
        ({"text": 3, "content": "c"}, "c"),
        ({"Text": "t"}, "t"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "x", "content": "a"}]},
            "user: q\n\nx: a",
        ),
        ({"conversations": [{"from": "human", "value": "q"}]}, "human: q"),
        ({"messages": [{"role": 1, "content": 2}]}, None),
        ({"messages": ["q"]}, None),
        ({"x": "y"}, None),
        ([1], None),
        (None, None),
    ],
)
def test_where_the_text_is(row: object, text: str | None) -> None:
    found = row_document("s", row)
    assert (found.text or None, found.reason) == (text, "" if text else "no_text_field")


ROWS = [
    {
        "text": "one",
        "url": "https://a.example/1",
        "date": "2024-01-02",
        "license": "MIT License",
        "id": 7,
        "score": 3,
    },
    {"text": "two\nlines", "url": "", "date": "", "license": "secret", "id": 8, "score": 4},
]


def check(found: list) -> None:
    assert [raw.text for raw in found] == ["one", "two\nlines"]
    assert (found[0].url, found[0].date, found[0].license) == (
        "https://a.example/1",
        "2024-01-02",
        "MIT",
    )
    assert found[1].license == "secret"
    assert found[0].detail["row_id"] == "7" and str(found[0].detail["columns"]["score"]) == "3"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_jsonl(tmp_path: Path, pack) -> None:
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    (tmp_path / "t").write_bytes(pack(lines))
    check(list(read_jsonl(tmp_path / "t")))


def test_jsonl_bad_rows(tmp_path: Path) -> None:
    lines = [
        b'{"text": "a"}',
        b"{bad",
        b"",
        b'{"x": 1}',
        b'{"text": " "}',
        b'"plain"',
        b"[" * 100_000,
        b"\xff\0",
        b"x" * 999,
    ]
    (tmp_path / "t").write_bytes(b"\n".join(lines))
    found = [(raw.source, raw.reason) for raw in read_jsonl(tmp_path / "t", max_bytes=200_000)]
    assert found == [
        ("t:1", ""), ("t:2", "bad_row"), ("t:4", "no_text_field"), ("t:5", "empty"), ("t:6", ""), ("t:7", "bad_row"),
        ("t:8", "binary"), ("t:9", "bad_row"),
    ]  # fmt: skip
    assert [raw.reason for raw in read_jsonl(tmp_path / "t", max_bytes=500)][-1] == "too_large"
    (tmp_path / "cut").write_bytes(gzip.compress(b'{"text": "a"}\n' * 5_000)[:-20])
    assert [raw.reason for raw in read_jsonl(tmp_path / "cut")][-1] == "broken_archive"


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    check(list(read_parquet(tmp_path / "t.parquet", batch_rows=1)))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not")
    assert [raw.reason for raw in read_parquet(tmp_path / "bad.parquet")] == ["unreadable"]
    (raw, _) = read_parquet(tmp_path / "t.parquet", text_field="url")
    assert raw.text == "https://a.example/1"


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csv(tmp_path: Path, delimiter: str) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    (tmp_path / "t.csv").write_text(out.getvalue(), newline="")
    check(list(read_csv(tmp_path / "t.csv")))


def test_csv_without_a_known_column_and_with_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\nx,the longest\ny\nz,next\n")
    found = list(read_csv(tmp_path / "t.csv"))
    assert [(raw.source, raw.text, raw.reason) for raw in found] == [
        ("t.csv:2", "the longest", ""), ("t.csv:3", "y", "bad_row"), ("t.csv:4", "next", ""),
    ]  # fmt: skip
    (tmp_path / "e.csv").write_bytes(b"")
    assert [raw.reason for raw in read_csv(tmp_path / "e.csv")] == ["empty"]
    (tmp_path / "b.csv").write_bytes(b"a,b\n\0\1\2,\3\n")
    assert [raw.reason for raw in read_csv(tmp_path / "b.csv")] == ["binary"]


_CELL = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cc", "Cs"]),
    min_size=1,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(_CELL, _CELL), min_size=1, max_size=5))
def test_csv_reads_what_csv_writes(tmp_path: Path, cells: list[tuple[str, str]]) -> None:
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "other"), *cells])
    found = [raw for raw in read_csv(tmp_path / "t.csv") if raw.reason != "empty"]
    assert [raw.text for raw in found] == [text for text, _ in cells if text.strip()]


def test_detail_is_bounded() -> None:
    raw = row_document(
        "s", {"text": "t", **{f"c{i}": "x" * 500 for i in range(100)}, "big": ["y"] * 100_000}
    )
    assert len(json.dumps(raw.detail)) < 3_000
