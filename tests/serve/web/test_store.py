"""The store under threads, processes, kill -9, odd queries, and files that are not its own."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gristmill.errors import RequestError
from gristmill.serve import store as store_module
from gristmill.serve.store import Conflict, Store, Vote, default_path


def put(store, id, revision=0, text="", title="t", **fields):
    return store.put_conversation(id, {"title": title, "model": "m", **fields}, revision, text)


def found(store, query):
    return {row["id"] for row in store.conversations(query)}


@pytest.mark.parametrize("in_memory", [True, False])
def test_no_write_of_any_thread_is_lost(tmp_path, in_memory):
    """Eight threads count in one document; who comes too late reads again, as the page does."""
    with Store(None if in_memory else tmp_path / "s.sqlite") as store:
        put(store, "c", count=0)
        conflicts = []

        def work():
            for _ in range(25):
                while True:
                    read = store.conversation("c")
                    assert read is not None
                    try:
                        put(store, "c", read["revision"], count=read["count"] + 1)
                        break
                    except Conflict as conflict:
                        assert conflict.stored is not None
                        conflicts.append(conflict.stored["revision"] - read["revision"])

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = store.conversation("c")
        assert last is not None
        assert (last["count"], last["revision"]) == (200, 201)
        assert all(newer > 0 for newer in conflicts)


def test_only_the_stored_revision_can_be_replaced(store):
    assert put(store, "c") == 1
    for wrong in (0, 2, 7):
        with pytest.raises(Conflict) as error:
            put(store, "c", wrong)
        assert error.value.stored["revision"] == 1
    assert put(store, "c", 1, title="new") == 2
    with pytest.raises(Conflict) as error:
        put(store, "other", 3)
    assert error.value.stored is None
    assert store.delete_conversation("c")
    assert not store.delete_conversation("c")
    assert store.conversation("c") is None
    assert found(store, "new") == set()


# The module alone: its package takes seconds to import, which these programs do not need.
PROLOGUE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("store", {store_module.__file__!r})
module = sys.modules["store"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from store import Store, Vote
"""

WRITER = """
store = Store(sys.argv[1])
held = store.conversation("c")
revision = held["revision"] if held else 0
while True:
    text = "grain " * 4000
    revision = store.put_conversation("c", {"title": "t", "model": "m", "text": text}, revision, text)
    votes = store.add_vote(Vote([{"role": "user", "content": text}], ("a", "b"), ("x", "y"), "first"))
    store.put_response(f"resp_{revision}", {"text": text})
    print(revision, votes, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_was_confirmed(tmp_path):
    path = tmp_path / "serve.sqlite"
    for writes in (1, 3, 10, 25):
        program = [sys.executable, "-c", PROLOGUE + WRITER, str(path)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(writes):
                line = writer.stdout.readline()
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.stdout.read().split("\n")  # what it still said before it died
        confirmed = [text for text in [line.strip(), *rest] if len(text.split()) == 2][-1]
        revision, votes = map(int, confirmed.split())
        with sqlite3.connect(path) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            database.execute(
                "INSERT INTO conversation_texts(conversation_texts) VALUES ('integrity-check')"
            )
        database.close()
        with Store(path) as store:
            kept = store.conversation("c")
            assert kept is not None
            assert revision <= kept["revision"] <= revision + 1
            assert votes <= len(store.votes()) <= votes + 1
            assert store.response(f"resp_{revision}") is not None
            assert found(store, "grain") == {"c"}


def test_processes_that_open_a_new_file_at_once_share_it(tmp_path):
    program = """
input()
with Store(sys.argv[1]) as store:
    for i in range(20):
        store.put_conversation(f"{sys.argv[2]}-{i}", {"title": "t", "model": "m"}, 0, "")
"""
    path = tmp_path / "serve.sqlite"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + program, str(path), str(n)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for n in range(4)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    assert [(w.communicate()[1], w.returncode) for w in writers] == [(b"", 0)] * 4
    with Store(path) as store:
        assert len(store.conversations()) == 80


def test_only_its_owner_may_read_what_people_said(tmp_path):
    with Store(tmp_path / "serve.sqlite"):
        assert (tmp_path / "serve.sqlite").stat().st_mode & 0o077 == 0


DOCUMENTS = {
    "mill": ("The mill", "Grinds wheat into flour. Don't stop!"),
    "river": ("River Ourthe", 'The naïve fox said "hello AND goodbye" OR c++ NOT near(x)'),
    "odd": ("*", "col:umn ^start a-b under_score 100% 你好 世界 \0 nul\0byte"),
}


@pytest.fixture(scope="module")
def library():
    with Store() as store:
        for id, (title, text) in DOCUMENTS.items():
            put(store, id, text=text, title=title)
        yield store


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("whea", {"mill"}),
        ("WHEAT flour", {"mill"}),
        ("wheat river", set()),
        ("the", {"mill", "river"}),
        ("naive", {"river"}),
        ('"hello', {"river"}),
        ('hello AND goodbye"', {"river"}),
        ("wheat OR river", set()),  # a word, not an operator: no text has all three
        ("NOT", {"river"}),
        ("c++", {"river", "odd"}),  # the words that begin with c
        ("near(x)", {"river"}),
        ("don't", {"mill"}),
        ("col:umn", {"odd"}),
        ("title:mill", set()),
        ("^start", {"odd"}),
        ("a-b", {"odd"}),
        ("under_score", {"odd"}),
        ("你好", {"odd"}),
        ("wheat\0flour", {"mill"}),
        ("*", set()),
        ('"', set()),
        ("()", set()),
        ("   ", set()),
        ("flour " * 1000, {"mill"}),
    ],
)
def test_what_a_query_finds(library, query, ids):
    assert found(library, query) == ids


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text() | st.text(alphabet="\"*^:()-+{}'\0 aANDORNT\ud800"))
def test_any_text_is_a_query(library, query):
    assert found(library, query) <= set(DOCUMENTS)


def test_the_newest_come_first(store):
    for id in "abc":
        put(store, id)
    put(store, "a", 1)
    assert [row["id"] for row in store.conversations()] == ["a", "c", "b"]
    assert set(store.conversations()[0]) == {"id", "title", "model", "updated"}


def test_responses_are_kept_as_they_were(store):
    document = {"id": "resp_1", "output": [{"text": "naïve \0 🙂"}], "n": 1.5}
    store.put_response("resp_1", document)
    store.put_response("resp_2", {"x": 1}, previous="resp_1")
    assert store.response("resp_1") == (document, None)
    assert store.response("resp_2") == ({"x": 1}, "resp_1")
    assert store.response("resp_3") is None
    assert store.delete_response("resp_1")
    assert not store.delete_response("resp_1")
    assert store.response("resp_1") is None


def test_votes_come_back_as_they_were_given(store):
    votes = [
        Vote(
            [{"role": "user", "content": "?"}],
            ("a", "b"),
            ("", "y\0"),
            "tie",
            "why",
            "me",
            True,
            3.0,
        ),
        Vote([{"role": "user", "content": "!"}], ("b", "a"), ("x", "y"), "first", created=4.0),
    ]
    assert [store.add_vote(vote) for vote in votes] == [1, 2]
    assert store.votes() == votes


def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "serve.sqlite"
    with Store(path) as store:
        put(store, "c")
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    before = path.read_bytes()
    with pytest.raises(RequestError, match=r"newer Gristmill \(version 99"):
        Store(path)
    assert path.read_bytes() == before


def foreign_database(path: Path) -> None:
    database = sqlite3.connect(path)
    database.executescript(
        "CREATE TABLE mine (a); INSERT INTO mine VALUES (1); PRAGMA user_version = 1;"
    )
    database.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("# A note, not a database\n" * 100),
        lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000),
        foreign_database,
    ],
    ids=["text", "damaged", "foreign"],
)
def test_another_file_is_refused_and_left_alone(tmp_path, make):
    path = tmp_path / "notes.md"
    make(path)
    before = path.read_bytes()
    with pytest.raises(RequestError, match=r"notes\.md cannot hold the server's conversations"):
        Store(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["notes.md"]


def test_a_place_that_cannot_be_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "serve.sqlite", tmp_path / ("n" * 300)):
        with pytest.raises(RequestError, match=r"may be written|no directory"):
            Store(path)


def test_the_default_place_is_the_persons_data_home(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/data/of/me")
    assert default_path() == Path("/data/of/me/gristmill/serve.sqlite")
    for ignored in ("", "relative"):  # the specification: a relative path is ignored
        monkeypatch.setenv("XDG_DATA_HOME", ignored)
        monkeypatch.setenv("HOME", "/home/me")
        assert default_path() == Path("/home/me/.local/share/gristmill/serve.sqlite")
