"""Files to passages, and answers that cite them, alone and beside the server's index."""

from __future__ import annotations

import json
import sys

import pytest

from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.lm import SamplingParams
from gristmill.retrieval import Answer, Index, Passage, Together, answer_stream, build
from gristmill.serve.errors import FieldError
from gristmill.serve.web import Attachments, passages_for
from tests.serve.web.conftest import State, client_of
from tests.tiny_model import FACTS, LESSONS, QUESTIONS, taught_model

OCTETS = {"content-type": "application/octet-stream"}
MARKDOWN = "# The mill\n\nBuilt in 1821 beside the river Ourthe.\n\n## Opening hours\n\nVisitors come on Saturdays.\n"
HTML = """<html><head><title>The mill</title><script>var river = "none";</script></head>
<body><h1>The mill</h1><p>Built in 1821 beside the <b>river</b> Ourthe.</p></body></html>"""
RST = "The mill\n========\n\nBuilt in 1821 beside the river Ourthe.\n"
C = "# define SACKS 12\nint grind(int sacks) {\n    return sacks * 2;\n}\n"
CSV = "name,built,river\nmill,1821,Ourthe\nbarn,1902,none\n"


def attach(client, name, content):
    raw = content if isinstance(content, bytes) else content.encode()
    return client.post("/app/attachments", params={"name": name}, content=raw, headers=OCTETS)


def searched(state, response, question) -> list[Passage]:
    assert response.status_code == 200, response.text
    return passages_for(None, [response.json()["id"]], state.attachments).search(question)


def pdf(*pages: str) -> bytes:
    """The smallest file with these words on its pages, by the PDF reference (7.5)."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, words in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 720 Td ({words}) Tj ET" if words else ""
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    out, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    out += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    return f"{out}startxref\n{out.rindex('xref')}\n%%EOF\n".encode()


@pytest.mark.parametrize(
    ("name", "content", "question", "title", "line"),
    [
        ("mill.md", MARKDOWN, "When can visitors come?", "Opening hours", 5),
        ("mill.rst", RST, "Beside which river is it?", "The mill", 1),
        ("mill.html", HTML, "Beside which river is it?", "The mill", 1),
        ("mill.txt", "Built in 1821.\nThe river is the Ourthe.\n", "the river", "mill.txt", 1),
        ("mill.csv", CSV, "Ourthe", "mill.csv", 1),
        ("mill.json", json.dumps({"mill": {"river": "Ourthe"}}), "Ourthe", "mill.json", 1),
        ("mill.c", C, "What does `grind` do?", "mill.c", 1),
        ("Makefile", "all: grind\n\ngrind:\n\tmill\n", "grind", "Makefile", 1),
        ("old.txt", "Die Mühle an der Ourthe.".encode("cp1252"), "Mühle", "old.txt", 1),
        ("wide.txt", "Die Mühle an der Ourthe.".encode("utf-16"), "Mühle", "wide.txt", 1),
        ("mill.pdf", pdf("Nothing here.", "Built beside the river Ourthe."), "river", "Page 2", 5),
    ],
)
def test_each_kind_of_file_is_found_in(client, state, name, content, question, title, line):
    response = attach(client, name, content)
    best = searched(state, response, question)[0]
    assert (best.title, best.source, best.line) == (title, name, line)
    told = response.json()
    raw = content if isinstance(content, bytes) else content.encode()
    assert (told["name"], told["bytes"]) == (name, len(raw))
    assert told["passages"] >= 1


def test_code_and_data_keep_their_lines(client, state):
    assert C.strip() in searched(state, attach(client, "mill.c", C), "grind")[0].text
    assert CSV.strip() in searched(state, attach(client, "mill.csv", CSV), "Ourthe")[0].text
    assert not searched(state, attach(client, "mill.html", HTML), "script var")  # what nobody reads


def test_names_lose_their_directories(client):
    for given, name in (("/etc/a.md", "a.md"), ("C:\\x\\b.md", "b.md"), ("a\nb\0c.md", "a b c.md")):
        assert attach(client, given, "words").json()["name"] == name
    for bad in ("", "/", "\n", "x" * 256):
        response = attach(client, bad, "words")
        assert (response.status_code, response.json()["error"]["param"]) == (400, "name")


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b" \n\t ", "a.txt is empty"),
        ("a.md", b"words\0" * 50, "a.md is not text"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "a.png is not text"),
        ("a.txt", bytes(range(0x80, 0x100)) * 4, "encoding"),
        ("a.html", b"<html><script>x()</script></html>", "holds no text"),
        ("a.txt", b"word " * 800_001, "at most 4,000,000"),
        ("a.pdf", b"%PDF-1.4 and then nothing", "cannot be read as a PDF"),
        ("a.pdf", pdf("", ""), "pictures of pages"),
    ],
)
def test_what_holds_no_text_is_refused_in_a_sentence(client, state, name, raw, words):
    response = attach(client, name, raw)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_a_file_beyond_the_limit_is_refused(client):
    response = attach(client, "a.txt", b"x" * ((16 << 20) + 1))
    assert response.status_code == 413
    assert "16 MiB" in response.json()["error"]["message"]


def test_without_the_reader_of_pdf_the_extra_is_named(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    response = attach(client, "mill.pdf", pdf("Words."))
    assert response.status_code == 400
    assert "gristmill[documents]" in response.json()["error"]["message"]


def test_an_attachment_that_was_taken_away_is_gone(client, state):
    id = attach(client, "mill.md", MARKDOWN).json()["id"]
    assert client.delete(f"/app/attachments/{id}").json() == {"id": id, "deleted": True}
    assert client.delete(f"/app/attachments/{id}").status_code == 404
    with pytest.raises(FieldError, match="not attached, or no longer") as error:
        passages_for(None, [id], state.attachments)
    assert (error.value.param, error.value.code) == (
        "retrieval.attachments[0]",
        "attachment_not_found",
    )
    with pytest.raises(FieldError, match="nothing to look in"):
        passages_for(None, [], state.attachments)


def test_what_was_not_used_for_longest_goes_first():
    held = Attachments(max_count=3)
    a, b, c = (held.add(f"{name}.txt", name.encode() * 3).id for name in "abc")
    assert held.get(a)
    d = held.add("d.txt", b"ddd").id
    assert [held.get(id) is not None for id in (a, b, c, d)] == [True, False, True, True]
    one = held.get(a)
    assert one
    small = Attachments(max_bytes=int(2.5 * one.index.nbytes))
    ids = [small.add("x.txt", b"words of a file").id for _ in range(5)]
    assert [small.get(id) is not None for id in ids] == [False, False, False, True, True]
    with pytest.raises(RequestError, match="larger than all"):
        Attachments(max_bytes=1000).add("x.txt", b"words")


def test_an_index_that_goes_while_it_is_searched_still_answers():
    held = Attachments(max_count=1)
    index = passages_for(None, [held.add("mill.md", MARKDOWN.encode()).id], held)
    held.add("other.md", b"words")
    assert index.search("river")


def test_an_index_in_memory_finds_what_a_file_finds(tmp_path):
    build(tmp_path / "index.sqlite", FACTS, [])
    with Index.open(tmp_path / "index.sqlite") as filed:
        made = Index.in_memory(FACTS, [])
        for question in (*QUESTIONS, "largest elements", "shell string", "nothing"):
            assert made.search(question) == filed.search(question)


PYTHON = '''"""Heaps."""


def nlargest(n, iterable, key=None):
    """Find the n largest elements in a dataset.

    >>> nlargest(3, [1, 5, 2, 8])
    """
'''


@pytest.fixture(scope="module")
def engine():
    return Engine(taught_model())


def test_a_model_answers_from_an_attached_file_and_cites_it(client, state, engine):
    """The model knows what to say to the passage of heapq.nlargest, and the attached file makes that passage."""
    response = attach(client, "heapq.py", PYTHON)
    index = passages_for(None, [response.json()["id"]], state.attachments)
    greedy = SamplingParams(max_tokens=100, temperature=0)
    *pieces, last = answer_stream(engine, index, QUESTIONS[0], greedy, k=1)
    assert isinstance(last, Answer)
    assert "".join(p for p in pieces if isinstance(p, str)) == last.text
    assert last.found
    assert "Find the n largest elements" in last.own_words
    (cited,) = last.citations
    assert (cited.source, cited.title, cited.line) == ("heapq.py", "heapq.nlargest", 4)
    nothing = list(answer_stream(engine, index, "Who wrote War and Peace?", greedy))[-1]
    assert isinstance(nothing, Answer)
    assert not nothing.found


def test_the_servers_index_and_attachments_are_searched_together(client, state, engine):
    server = Index.in_memory(FACTS, [])
    id = attach(client, "mill.md", MARKDOWN).json()["id"]
    both = passages_for(server, [id, id], state.attachments)
    assert isinstance(both, Together)
    assert len(both.parts) == 2
    assert [p.source for p in both.search("river Ourthe")] == ["mill.md"]
    for question, fact in zip(QUESTIONS, FACTS, strict=True):
        assert both.search(question)[0].fact_id == fact.id
    greedy = SamplingParams(max_tokens=100, temperature=0)
    last = list(answer_stream(engine, both, QUESTIONS[1], greedy, k=1))[-1]
    assert isinstance(last, Answer)
    assert last.own_words.strip() == LESSONS[1][1]
    assert last.citations[0].fact_id == FACTS[1].id


def test_of_several_files_the_one_that_holds_most_of_the_question_comes_first(state):
    files = {
        "a.txt": "The river is deep.\n",
        "b.txt": "The river turns the wheel of the mill.\n",
        "c.txt": "The wheel turns.\n",
    }
    ids = [state.attachments.add(name, text.encode()).id for name, text in files.items()]
    found = passages_for(None, ids, state.attachments).search("river wheel mill")
    assert found[0].source == "b.txt"
    tied = passages_for(None, ids[::-1], state.attachments).search("turns")
    assert [p.source for p in tied] == ["c.txt", "b.txt"]
    assert len(passages_for(None, ids, state.attachments).search("turns wheel river", k=1)) == 1


def test_attaching_needs_no_store():
    state = State()
    with client_of(state) as client:
        assert attach(client, "mill.md", MARKDOWN).status_code == 200
