"""Pages that hang, swell or crash parsers: a reason in bounded time, and the next page works."""

import os
import time
import tracemalloc

import pytest

from gristmill.data.extract import MAX_HTML_BYTES, Watchdog, extract
from gristmill.data.extract.watchdog import Failure

GOOD = b"<html><body><article>%s</article></body></html>" % b"".join(
    b"<p>Round %d: the quick brown fox jumps over the lazy dog, and that is that.</p>" % n
    for n in range(12)
)
REASONS = {
    "",
    "no_text",
    "empty",
    "too_large",
    "extraction_timeout",
    "extraction_memory",
    "extraction_failed",
}


@pytest.fixture(scope="module")
def dog():
    with Watchdog(deadline_seconds=0.6) as dog:
        yield dog


def _nest(tag: bytes, depth: int) -> bytes:
    return (b"<%s>" % tag) * depth + b"deep text" + (b"</%s>" % tag) * depth


PAGES = {
    "nested_div": _nest(b"div", 100_000),
    "nested_b": _nest(b"b", 100_000),
    "nested_table": _nest(b"table><tr><td", 20_000),
    "unclosed_paragraphs": b"<p>word " * 60_000,
    "colspan": b"<table><tr><td colspan=9007199254740991>a</td></tr></table>" * 50 + GOOD,
    "single_line": b"<p>" + b"word " * 1_800_000,
    "one_word": b"<p>" + b"a" * 9_000_000,
    "nuls": b"\0".join(GOOD[i : i + 7] for i in range(0, len(GOOD), 7)),
    "mixed_encodings": "<p>Grüße aus Köln, schön.</p>".encode() * 20
    + "<p>é à ü</p>".encode("latin-1") * 20,
    "right_to_left": ("<p>" + "\u202e\u202b" * 100_000 + "שלום עולם" * 50).encode(),
    "combining": ("<p>a" + "\u0301" * 500_000).encode(),
    "open_tags": b"<a rel=license " * 50_000,
    "attributes": b"<div " + b" ".join(b"a%d=1" % i for i in range(100_000)) + b">text</div>",
    "entities": b"<p>" + b"&lt;&#0;&#xD800;&#99999999;" * 50_000,
    "comment": b"<!--" * 300_000 + GOOD,
    "cdata": b"<![CDATA[" * 100_000,
    "half_utf16": b"\xff\xfe<" + b"h\0t\0m\0l\0>\0a",
    "random_bytes": bytes((i * 7919 + i // 251) % 256 for i in range(300_000)),
    "bad_charset": b"<meta charset='utf-7\xff'>" + GOOD,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_hostile_page_gets_a_reason_and_the_next_page_works(dog, name):
    began = time.monotonic()
    got = extract(PAGES[name], "", watchdog=dog)
    assert got.reason in REASONS
    assert bool(got.text) == (got.reason == "")
    assert "\0" not in got.text
    assert (
        time.monotonic() - began < 2 * 0.6 * 12 + 60
    )  # the backstop of both passes, and a restart
    after = extract(GOOD, watchdog=dog)
    assert after.reason == "" and after.text.count("quick brown fox") == 12


def test_nuls_and_colspans_cost_no_text(dog):
    for name in ("nuls", "colspan"):
        assert extract(PAGES[name], watchdog=dog).text.count("quick brown fox") == 12


def test_empty_and_oversized_pages_never_reach_a_parser():
    with Watchdog() as dog:
        for page in (b"", b"  \n\t"):
            assert extract(page, watchdog=dog).reason == "empty"
        tracemalloc.start()
        page = b"<p>" + b"a" * 100_000_000  # one line
        got = extract(page, watchdog=dog)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert got.reason == "too_large"
        assert got.detail == {"bytes": len(page), "limit": MAX_HTML_BYTES}
        assert peak < 250_000_000
        assert dog.starts == 0


def _child(tmp_path, monkeypatch, body: str) -> str:
    """A child that behaves as `body` says when a page comes."""
    (tmp_path / "badchild.py").write_text(
        "import sys, os, signal, time\n"
        "from gristmill.data.extract.child import send, receive\n"
        "def main(memory, wall):\n"
        "    send(sys.stdout.buffer, ('ready',))\n"
        "    while message := receive(sys.stdin.buffer):\n"
        f"        {body}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "badchild"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("while True: pass", "extraction_timeout"),
        ("x = [b'a' * 10**6 * i for i in range(1, 10**6)]", "extraction_memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "extraction_failed"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "extraction_memory"),
        ("os._exit(3)", "extraction_failed"),
        ("os.write(1, b'junk that is no frame'); os._exit(0)", "extraction_failed"),
    ],
)
def test_each_way_to_die_has_its_reason_and_a_fresh_child_follows(
    tmp_path, monkeypatch, body, reason
):
    target = _child(tmp_path, monkeypatch, body)
    with Watchdog(deadline_seconds=0.5, memory_bytes=300_000_000, target=target) as dog:
        for starts in (1, 2):
            got = dog.ask("page", b"<p>x", "")
            assert isinstance(got, Failure) and got.reason == reason
            assert dog.starts == starts


def test_a_real_child_refuses_memory_beyond_its_limit(tmp_path):
    with Watchdog(memory_bytes=200_000_000) as dog:
        got = extract(b"<p>" + b"<b>a</b> " * 1_000_000, watchdog=dog)
        assert got.reason in ("extraction_memory", "extraction_failed"), got.reason
        assert extract(GOOD, watchdog=dog).text.count("quick brown fox") == 12


def test_the_child_is_the_first_to_go_and_leaves_with_its_owner():
    with Watchdog() as dog:
        extract(GOOD, watchdog=dog)
        assert dog._child is not None
        pid = dog._child.pid
        with open(f"/proc/{pid}/oom_score_adj") as file:
            assert file.read().strip() == "1000"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_child_serves_many_pages():
    with Watchdog() as dog:
        for _ in range(20):
            extract(GOOD, watchdog=dog)
        assert dog.starts == 1
