"""The index on the real standard library: what is there is found first, what is not is not found."""

from __future__ import annotations

import random
import sqlite3
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gristmill.data.facts import FactsConfig, extract
from gristmill.data.facts import run as run_facts
from gristmill.data.grounding import passage
from gristmill.data.phrasings import questions
from gristmill.errors import RequestError
from gristmill.retrieval import Index, IndexConfig, build, run
from tests.stdlib_documents import document, stdlib_documents, topic_documents, write_documents

NOTES = """# The mill

The mill was built in 1821 beside the river Ourthe.

## Repair plan

In March we replace the wheel. Oak planks are ordered from Liège.

## Opening hours

Visitors may come on Saturdays from ten to four.
"""


@pytest.fixture(scope="module")
def prose():
    notes = document(NOTES, "notes/mill.md", kind="markdown", group="notes")
    code = document(
        "// grinds wheat into flour\nint grind(int sacks);\n",
        "notes/grind.c",
        kind="code",
        group="notes",
    )
    return [*topic_documents(), notes, code]


@pytest.fixture(scope="module")
def facts(prose):
    return extract([*stdlib_documents(), *prose])[0]


@pytest.fixture(scope="module")
def index(facts, prose, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "index.sqlite"
    build(path, facts, prose)
    with Index.open(path) as opened:
        yield opened


def test_questions_by_exact_name_find_their_fact_first(index, facts):
    code = [fact for fact in facts if fact.kind not in ("topic", "section")]
    asked = random.Random(0).sample(code, 500)
    rng = random.Random(1)
    right = 0
    for fact in asked:
        form = rng.choice([form for form in ("what", "args", "returns") if questions(form, fact)])
        hits = index.search(rng.choice(questions(form, fact)))
        right += bool(hits) and hits[0].fact_id == fact.id
    assert right >= 0.99 * len(asked)


def test_descriptions_find_what_they_describe(index, facts):
    asked = random.Random(0).sample(
        [f for f in facts if f.unique and f.kind in ("function", "method")], 200
    )
    rng = random.Random(2)
    found = [
        fact.id in [hit.fact_id for hit in index.search(rng.choice(questions("which", fact)))]
        for fact in asked
    ]
    assert sum(found) >= 0.95 * len(found)


def test_topics_are_found_by_name_also_when_it_is_a_function_word(index):
    for name in ("with", "for", "lambda", "context-managers", "if"):
        assert name in [hit.title for hit in index.search(f"Explain `{name}`.")]
    assert index.search("what is with")[0].title == "with"
    assert index.search("Tell me about the with statement")[0].source == "python3.x/topics/with"


@pytest.mark.parametrize(
    ("question", "source", "line"),
    [
        ("What is the repair plan?", "notes/mill.md", 5),
        ("When can visitors come on Saturdays?", "notes/mill.md", 9),
        ("Where do we get the oak planks?", "notes/mill.md", 5),
        ("what grinds wheat to flour?", "notes/grind.c", 1),
        ("How do I find the n largest elements of a dataset?", "python3.x/heapq.py", None),
        ("asyncio.runners.run", "python3.x/asyncio/runners.py", None),
        ("nlargest", "python3.x/heapq.py", None),
        ("hq.nlargest(3, data)", "python3.x/heapq.py", None),
    ],
)
def test_found(index, question, source, line):
    hit = index.search(question)[0]
    assert hit.source == source
    assert line is None or hit.line == line
    assert hit.cite == f"{hit.source}:{hit.line}"


@pytest.mark.parametrize(
    "question",
    [
        "What is the capital of France?",
        "Who wrote War and Peace?",
        "What does `heapq.frobnicate` do?",
        "What does `heapq.sum` return?",
        "frobnicate_widget",
        "zzzqqq xxyyzz",
        "",
        "?!...",
        "   \n\t ",
    ],
)
def test_not_found(index, question):
    assert index.search(question) == []


HOSTILE = [
    '"', "'", '"unbalanced', "a OR b AND NOT c", "NEAR(a b, 5)", "names:heapq", "col : x", "*", "heapq*", "^heapq",
    "-heapq", "(", ")", "a\0b", "\0", "🙂 heapq 🙂", "\ud800", "heapq\ud83dnlargest", "`", "``", "`'`", "x" * 10_000,
    "heapq " * 2_000, '"a" ' * 2_000, "`a.b` " * 2_000, ".".join("ab" * 2_000), "%s; DROP TABLE passages; --",
    "' OR 1=1 --", "\u202eheapq", "ﷺ" * 500, "_" * 5_000, "`" * 10_000, "." * 10_000, "中" * 3_000,
]  # fmt: skip


@pytest.mark.parametrize("question", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_questions_never_raise(index, question):
    for hit in index.search(question, k=5):
        assert hit.text
    assert index.search("`heapq.nlargest`")[0].title == "heapq.nlargest"


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(max_size=80) | st.text(alphabet=" .`_()\"'*:^-+ANDORNEARheapq\0", max_size=80))
def test_any_text_can_be_searched(index, question):
    hits = index.search(question, k=4)
    assert len(hits) <= 4
    assert len({(hit.source, hit.line, hit.title) for hit in hits}) == len(hits)


def test_k_is_kept_and_scores_fall(index):
    for k in (1, 2, 7):
        hits = index.search("Return the values", k=k)
        assert len(hits) == k
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_passage_is_what_training_showed(index, facts):
    """The grounded rows of SFT and the chat must show a fact in the same form."""
    for fact in random.Random(0).sample(facts, 300):
        hits = [hit for hit in index.search(f"`{fact.name}`", k=8) if hit.fact_id == fact.id]
        for hit in hits:
            assert hit.text.startswith(f"{fact.name}: ")
            if fact.kind not in ("topic", "section"):
                assert hit.text == passage(fact)
    section = next(fact for fact in facts if fact.name == "Repair plan")
    assert index.search("What is the repair plan?")[0].text == passage(section)


def test_ranking_is_sqlites_bm25(index, tmp_path):
    """Against the Lucene-form formula of SQLite's documentation, computed by hand on three documents."""
    import math

    rows = [("alpha beta alpha", 1), ("beta gamma", 2), ("alpha gamma gamma delta", 3)]
    text = "".join(f"# H{n}\n\n{body}\n\n" for body, n in rows)
    one = document(text, "n/x.md", kind="markdown", group="n")
    build(tmp_path / "i.sqlite", [], [one])
    with Index.open(tmp_path / "i.sqlite") as small:
        found = {hit.title: hit.score for hit in small.search("alpha delta", k=3)}
    # Document 3 holds both words. FTS5 clamps the idf of a word that most documents hold to 1e-6.
    lengths = {
        n: len(body.split()) + 1 + 3 for body, n in rows
    }  # body + heading + (title, file, package)
    average = sum(lengths.values()) / 3
    idf = {"delta": math.log((3 - 1 + 0.5) / (1 + 0.5)), "alpha": 1e-6}

    def weigh(term, n):
        count = rows[n - 1][0].split().count(term)
        return idf[term] * count * 2.2 / (count + 1.2 * (1 - 0.75 + 0.75 * lengths[n] / average))

    assert set(found) == {"H3"}
    assert found["H3"] == pytest.approx(weigh("delta", 3) + weigh("alpha", 3), rel=0.05)


def test_equal_input_gives_equal_bytes(facts, prose, tmp_path):
    build(tmp_path / "a.sqlite", facts, prose)
    build(tmp_path / "b.sqlite", facts, iter(prose))
    assert (tmp_path / "a.sqlite").read_bytes() == (tmp_path / "b.sqlite").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sqlite", "b.sqlite"]


def test_the_stage_indexes_facts_and_prose_of_both_splits(tmp_path):
    rows = [
        *stdlib_documents(["heapq", "json"]),
        document(NOTES, "n/mill.md", kind="markdown", group="n", split="heldout"),
    ]
    documents = write_documents(tmp_path / "documents", rows)
    facts = run_facts(FactsConfig(), {"documents": documents}, tmp_path).outputs["facts"]
    result = run(IndexConfig(), {"documents": documents, "facts": facts}, tmp_path)
    assert result.metrics["chunks"] == 3
    assert result.metrics["passages"] == result.metrics["facts"] + 3
    with Index.open(result.outputs["index"]) as opened:
        assert opened.size == result.metrics["passages"]
        assert opened.search("opening hours")[0].source == "n/mill.md"
        assert opened.search("json.dumps")[0].title == "json.dumps"


def test_an_interrupted_build_leaves_the_old_index(facts, prose, tmp_path):
    path = tmp_path / "index.sqlite"
    build(path, facts[:10], [])
    before = path.read_bytes()

    def breaks():
        yield prose[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(path, facts, breaks())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["index.sqlite"]


def test_what_is_not_an_index_is_said(tmp_path):
    with pytest.raises(RequestError, match="is not there"):
        Index.open(tmp_path / "none.sqlite")
    (tmp_path / "text").write_text("not a database at all, but long enough to be one" * 50)
    with pytest.raises(RequestError, match="not an index"):
        Index.open(tmp_path / "text")
    (tmp_path / "empty").touch()
    with pytest.raises(RequestError, match="not an index"):
        Index.open(tmp_path / "empty")
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE passages (id)")
    other.commit()
    other.close()
    with pytest.raises(RequestError, match="not an index"):
        Index.open(tmp_path / "other.sqlite")
    with pytest.raises(RequestError):
        Index.open(tmp_path)


def test_opening_writes_nothing(index):
    before = index.path.read_bytes()
    index.search("heapq")
    assert index.path.read_bytes() == before
    assert [file.name for file in index.path.parent.iterdir()] == ["index.sqlite"]


def test_threads_share_an_index(index):
    expected = index.search("How do I wrap a paragraph of text?")
    wrong = []

    def ask():
        for _ in range(20):
            if index.search("How do I wrap a paragraph of text?") != expected:
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expected
    assert wrong == []
