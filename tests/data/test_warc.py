"""Web archives against warcio's reading of the same files, and against files damaged on purpose."""

import gzip
import io
import random
import resource
import zlib
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from gristmill.data.sources.crawl_paths import is_crawl_paths, read_crawl_paths
from gristmill.data.sources.http_block import parse_response
from gristmill.data.sources.warc import read_warc
from gristmill.errors import RequestError

CRAWL = Path(__file__).parents[3] / "shared" / "data" / "crawl"
FILES = sorted(
    path
    for folder in ("warcio", "cc-whirlwind")
    for path in (CRAWL / folder).iterdir()
    if ".paths" not in path.name
)
# Where warcio gives up or reads something else, and what is expected instead: (usable, reasons).
OURS = {
    # Members that run on: warcio stops at the first, we read them all.
    "example-bad-non-chunked.warc.gz": (1, []),
    "example-bad.warc.gz.bad": (1, []),
    # Not one header line of five sound fields but the 1-byte text record; warcio gives four empty records.
    "bad.arc": (0, ["damaged_record"] * 4 + ["empty"] + ["damaged_record"]),
    # Twelve bytes short; warcio gives what there is.
    "example-space-in-url.arc": (0, ["truncated_record"]),
    # Content-Length is wrong: the response before it reads, the rest has no header.
    "example-trunc.warc": (1, ["broken_archive"]),
    # Said to be chunked, and is not; warcio fails.
    "example-wrong-chunks.warc.gz": (1, []),
}


def _by_warcio(path: Path) -> list[tuple[str, bytes]]:
    """(url, decoded body) of what holds a document."""
    found = []
    with open(path, "rb") as file:
        for record in ArchiveIterator(file, arc2warc=True):
            body = record.content_stream().read()
            http = record.http_headers
            kind = (http or record.rec_headers).get_header("Content-Type") or ""
            page = kind.startswith(("text/html", "text/plain"))
            status = http.get_statuscode() if http else "200"
            if (
                record.rec_type in ("response", "resource", "conversion")
                and page
                and status == "200"
            ):
                found.append((record.rec_headers.get_header("WARC-Target-URI"), body))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_archive_reads_as_warcio_reads_it(path):
    raws = list(read_warc(path))
    usable = [raw for raw in raws if not raw.reason]
    if path.name in OURS:
        count, reasons = OURS[path.name]
        assert (len(usable), [raw.reason for raw in raws if raw.reason]) == (count, reasons)
        return
    assert not [raw for raw in raws if raw.reason]
    want = _by_warcio(path)
    assert [(raw.url, raw.html or raw.text.encode()) for raw in usable] == want


def test_the_crawl_page_carries_its_url_charset_and_date():
    (raw,) = read_warc(CRAWL / "cc-whirlwind" / "whirlwind.warc.gz")
    assert raw.url == "https://an.wikipedia.org/wiki/Escopete"
    assert (raw.charset, raw.date) == ("utf-8", "2024-05-18T01:58:10Z")
    assert raw.source == "whirlwind.warc.gz/https://an.wikipedia.org/wiki/Escopete"


def test_what_holds_no_document_is_counted():
    counts: Counter[str] = Counter()
    list(read_warc(CRAWL / "warcio" / "example.warc", counts=counts))
    assert counts == {"warcinfo": 2, "request": 2, "revisit": 1}


def _archive(
    *bodies: bytes, gzipped: bool = True, headers: tuple = (), kind: str = "text/html"
) -> bytes:
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=gzipped)
    for number, body in enumerate(bodies):
        http = StatusAndHeaders("200 OK", [("Content-Type", kind), *headers], protocol="HTTP/1.1")
        writer.write_record(
            writer.create_warc_record(
                f"http://e.org/{number}", "response", payload=io.BytesIO(body), http_headers=http
            )
        )
    return out.getvalue()


def _read(tmp_path: Path, data: bytes, **options) -> list:
    path = tmp_path / "a.warc.gz"
    path.write_bytes(data)
    return list(read_warc(path, **options))


PAGE = b"<!doctype html><html><body><p>Hello, world.</p></body></html>"


@pytest.mark.parametrize(
    "encoding", ["gzip", "deflate", "br", "zstd", "raw deflate", "identity", "lie"]
)
def test_content_encodings(tmp_path, encoding):
    import brotli

    raw = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(PAGE),
        "deflate": zlib.compress(PAGE),
        "br": brotli.compress(PAGE),
        "zstd": zstandard.compress(PAGE),
        "raw deflate": raw.compress(PAGE) + raw.flush(),
        "identity": PAGE,
        "lie": PAGE,
    }[encoding]
    label = {"raw deflate": "deflate", "lie": "gzip"}.get(encoding, encoding)
    (got,) = _read(tmp_path, _archive(packed, headers=(("Content-Encoding", label),)))
    assert got.html == PAGE


def test_zstd_archive(tmp_path):
    (got,) = _read(tmp_path, zstandard.compress(_archive(PAGE, gzipped=False)))
    assert got.html == PAGE


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), max_size=20))
def test_chunks_join_to_what_was_sent(body, sizes):
    sent, at = b"", 0
    for size in [*sizes, 400]:
        piece = body[at : at + size]
        at += size
        if piece:
            sent += b"%x;ext=1\r\n%s\r\n" % (len(piece), piece)
    sent += b"0\r\n\r\n"
    block = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + sent
    if body:
        assert parse_response(block, 1000).body == body


def test_a_bare_page_under_an_http_label_is_read(tmp_path):
    head = (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://e.org/\r\n"
        b"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
        b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n"
    )
    (got,) = _read(tmp_path, head % len(PAGE) + PAGE + b"\r\n\r\n")
    assert got.html == PAGE and got.reason == ""


def test_pages_over_the_limit_carry_the_numbers_and_the_next_is_read(tmp_path):
    big = random.Random(1).randbytes(50_000)
    got = _read(tmp_path, _archive(big, PAGE), max_bytes=20_000)
    assert [raw.reason for raw in got] == ["too_large", ""]
    assert got[0].detail["limit"] == 20_000 and got[0].detail["bytes_at_least"] > 20_000
    assert got[1].html == PAGE


@pytest.mark.parametrize("where", ["member", "content"])
def test_a_gzip_bomb_costs_neither_memory_nor_the_reading(tmp_path, where):
    zeros = 50_000_000
    packer = zlib.compressobj(9, wbits=31)
    bomb = (
        b"".join(packer.compress(bytes(1_000_000)) for _ in range(zeros // 1_000_000))
        + packer.flush()
    )
    if where == "content":
        data = _archive(bomb, PAGE, headers=(("Content-Encoding", "gzip"),))
    else:
        head = _archive(b"", gzipped=False).replace(
            b"Content-Length: 44", b"Content-Length: %d" % zeros
        )
        packer = zlib.compressobj(9, wbits=31)
        data = packer.compress(head) + b"".join(
            packer.compress(bytes(1_000_000)) for _ in range(zeros // 1_000_000)
        )
        data += packer.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = _read(tmp_path, data)
    assert got[0].reason == "too_large"
    if where == "content":
        assert got[1].html == PAGE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # kB


@pytest.mark.parametrize(
    "data", [b"", b"hello world " * 99, b"\x1f\x8b\x08 no gzip", b"\0" * 5000, PAGE]
)
def test_what_is_no_archive_gives_one_reason(tmp_path, data):
    (got,) = _read(tmp_path, data)
    assert got.reason == "unreadable" and got.detail["error"]


def test_a_file_that_is_not_there_gives_one_reason(tmp_path):
    (got,) = read_warc(tmp_path / "none.warc")
    assert got.reason == "unreadable"


def test_archives_cut_or_flipped_anywhere_never_raise(tmp_path):
    rng = random.Random(7)
    whole = _archive(*(PAGE + rng.randbytes(300) for _ in range(6)))
    arc = (CRAWL / "warcio" / "example.arc.gz").read_bytes()
    for source in (whole, arc):
        for _ in range(60):
            at = rng.randrange(1, len(source))
            flipped = source[:at] + bytes([source[at] ^ rng.randrange(1, 256)]) + source[at + 1 :]
            for data in (source[:at], flipped):
                for raw in _read(tmp_path, data):
                    assert raw.reason or raw.html or raw.text


def test_pages_before_a_broken_member_stay(tmp_path):
    one = _archive(PAGE)
    got = _read(tmp_path, one + one[:40] + b"\xff" * 40 + one[80:])
    assert got[0].html == PAGE
    assert got[-1].reason == "broken_archive" and got[-1].detail["records_read"] >= 1


def test_lists_of_paths_name_what_is_there_and_what_is_missing(tmp_path):
    source = CRAWL / "cc-whirlwind" / "CC-MAIN-2024-22.warc.paths.gz"
    assert is_crawl_paths(source)
    lines = gzip.decompress(source.read_bytes()).decode().split()
    (tmp_path / lines[3]).write_bytes(b"")
    (tmp_path / lines[1]).write_bytes(b"")
    got = read_crawl_paths(source, tmp_path)
    assert got.found == (tmp_path / lines[1], tmp_path / lines[3])
    assert list(got.missing) == [line for line in lines if line not in (lines[1], lines[3])]


def test_a_list_finds_whole_paths_and_bare_names(tmp_path):
    (tmp_path / "crawl-data").mkdir()
    (tmp_path / "crawl-data" / "a.warc.gz").write_bytes(b"")
    (tmp_path / "b.warc.gz").write_bytes(b"")
    listing = tmp_path / "warc.paths"
    listing.write_text("crawl-data/a.warc.gz\ncrawl-data/deep/b.warc.gz\n\n")
    got = read_crawl_paths(listing)
    assert got.found == (tmp_path / "crawl-data" / "a.warc.gz", tmp_path / "b.warc.gz")
    assert got.missing == ()


@pytest.mark.parametrize("line", ["../x.warc.gz", "/etc/passwd", "a/../../x"])
def test_lines_that_lead_out_are_refused(tmp_path, line):
    listing = tmp_path / "warc.paths"
    listing.write_text(line + "\n")
    with pytest.raises(RequestError, match="line 1"):
        read_crawl_paths(listing)


def test_a_damaged_list_is_refused(tmp_path):
    listing = tmp_path / "warc.paths.gz"
    listing.write_bytes(gzip.compress(b"a\n" * 999)[:20])
    with pytest.raises(RequestError, match="cannot read"):
        read_crawl_paths(listing)
