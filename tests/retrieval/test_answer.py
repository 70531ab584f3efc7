"""Answers from passages, with language models that read in ways we can predict."""

from __future__ import annotations

import pytest

from gristmill.data import NOT_FOUND, grounded
from gristmill.data.facts import extract
from gristmill.errors import RequestError
from gristmill.lm import LM, Chunk, Completion
from gristmill.retrieval import Answer, Index, Passage, answer, answer_stream, build, supports
from tests.stdlib_documents import document, stdlib_documents


class Reader(LM):
    """Answers with what the passage says of the name that stands in the question, as a perfect reader of our
    prompts would; refuses prompts over `limit` characters."""

    def __init__(self, limit=10_000):
        self.limit, self.prompts = limit, []

    def chat(self, messages, params=None):
        self.prompts.append(list(messages))
        if sum(len(message["content"]) for message in messages) > self.limit:
            raise RequestError("the prompt does not fit the context")
        body, _, question = messages[-1]["content"].rpartition("\n\nQuestion: ")
        for block in body.split("\n\n["):
            line = block.split("\n")[1]
            name, _, told = line.partition(": ")
            if name in question:
                return self._say(told)
        return self._say(NOT_FOUND)

    def _say(self, text):
        return Completion(text, tuple(range(len(text.split()))), "stop", 1)

    def stream_chat(self, messages, params=None):
        completion = self.chat(messages, params)
        for word in completion.text.split(" ")[:-1]:
            yield Chunk(word + " ")
        yield Chunk(completion.text.split(" ")[-1], completion)

    def generate(self, requests):
        raise NotImplementedError

    def stream(self, request):
        raise NotImplementedError

    def score(self, texts):
        raise NotImplementedError


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    rows = stdlib_documents(["heapq", "textwrap", "json"])
    notes = document("# Hours\n\nThe mill opens at ten.\n", "n/a.md", kind="markdown", group="n")
    path = tmp_path_factory.mktemp("index") / "index.sqlite"
    build(path, extract([*rows, notes])[0], [notes])
    with Index.open(path) as opened:
        yield opened


def test_an_answer_cites_where_it_stands(index):
    found = answer(Reader(), index, "What does `heapq.nlargest` do?")
    assert found.text == "Find the n largest elements in a dataset."
    assert found.found
    assert [passage.title for passage in found.citations] == ["heapq.nlargest"]
    source, _, line = found.citations[0].cite.rpartition(":")
    assert source == "python3.x/heapq.py"
    text = next(row.text for row in stdlib_documents(["heapq"]) if row.source == source)
    assert text.split("\n")[int(line) - 1].startswith("def nlargest")


def test_the_model_is_not_asked_when_nothing_is_found(index):
    reader = Reader()
    assert answer(reader, index, "Who wrote War and Peace?") == Answer(NOT_FOUND, (), (), False)
    assert list(answer_stream(reader, index, "Who wrote War and Peace?")) == [
        NOT_FOUND,
        Answer(NOT_FOUND, (), (), False),
    ]
    assert reader.prompts == []


def test_a_model_that_finds_nothing_in_the_passages_cites_nothing(index):
    found = answer(Reader(), index, "How do I wrap a paragraph?")
    assert found.text == NOT_FOUND
    assert not found.found
    assert found.passages
    assert found.citations == ()


def test_only_the_last_user_message_is_searched(index):
    reader = Reader()
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What does `json.dumps` do?"},
        {"role": "assistant", "content": "It writes JSON."},
        {"role": "user", "content": "What does `heapq.heappop` do?"},
    ]
    found = answer(reader, index, talk)
    assert found.passages[0].title == "heapq.heappop"
    assert all("json" not in passage.title for passage in found.passages)
    texts = [passage.text for passage in found.passages]
    last = {"role": "user", "content": grounded(talk[-1]["content"], texts)}
    assert reader.prompts == [[*talk[:-1], last]]


def test_a_prompt_that_does_not_fit_loses_earlier_turns_then_passages(index):
    question = "How do I wrap a paragraph of text into lines?"
    assert len(index.search(question)) == 3
    whole = len(grounded(question, [p.text for p in index.search(question)]))
    history = [{"role": "user", "content": "y" * 50}, {"role": "assistant", "content": "z" * 50}]
    talk = [*history, {"role": "user", "content": question}]
    for limit, turns, passages in ((whole + 200, 3, 3), (whole + 50, 1, 3), (whole - 1, 1, 2)):
        for ask in (answer, lambda *args: list(answer_stream(*args))[-1]):
            reader = Reader(limit)
            found = ask(reader, index, talk)
            assert (len(reader.prompts[-1]), len(found.passages)) == (turns, passages)
    for ask in (answer, lambda *args: list(answer_stream(*args))):
        with pytest.raises(RequestError, match="does not fit"):
            ask(Reader(10), index, talk)


def test_the_stream_says_what_the_answer_is(index):
    question = "What does `textwrap.dedent` do?"
    *pieces, last = answer_stream(Reader(), index, question)
    assert last == answer(Reader(), index, question)
    assert "".join(pieces) == last.text
    assert last.citations
    assert len(pieces) == len(last.text.split(" ")) > 3


def test_without_a_user_message_there_is_no_question(index):
    for messages in ([], [{"role": "system", "content": "x"}]):
        with pytest.raises(RequestError, match="no user message"):
            answer(Reader(), index, messages)


def passage_of(text, title="t"):
    return Passage(text, title, "s", 1, 1.0)


def test_citations_follow_the_stated_rule():
    wheel = passage_of("The wheel turns the grindstone.")
    river = passage_of("The river turns the wheel slowly.")
    other = passage_of("Bread is baked on Mondays.")
    assert supports("The river turns the wheel.", [wheel, river, other]) == (
        river,
    )  # 2/3 < 0.8 * 3/3
    assert supports("The wheel turns.", [wheel, river, other]) == (wheel, river)
    assert supports("Cats sleep all day.", [wheel, river, other]) == ()
    assert supports("", [wheel]) == ()
    assert supports("x", []) == ()
    named = passage_of("anything", "heapq.nlargest")
    assert supports("`heapq.nlargest`", [named, other]) == (named,)


class Says(Reader):
    """Says one thing whatever is asked."""

    def __init__(self, text, finish_reason="stop"):
        super().__init__()
        self.text, self.finish_reason = text, finish_reason

    def chat(self, messages, params=None):
        return Completion(self.text, (1,), self.finish_reason, 1)


def test_words_that_no_passage_holds_are_followed_by_the_best_passage(index):
    said = "Counterfeit banknotes, mostly."
    found = answer(Says(said), index, "What does `heapq.nlargest` do?")
    best = found.passages[0]
    assert found.text == f"{said}\n\nThe documents say:\n\n{best.text}"
    assert best.title == "heapq.nlargest"
    assert (found.citations, found.found, found.own_words) == ((best,), True, said)
    *pieces, last = answer_stream(Says(said), index, "What does `heapq.nlargest` do?")
    assert "".join(pieces) == last.text
    assert last == found


def test_words_that_ended_for_want_of_room_are_followed_by_the_best_passage(index):
    said = "Find the n largest elements in a dataset."
    whole, cut = (
        answer(Says(said, reason), index, "What does `heapq.nlargest` do?")
        for reason in ("stop", "length")
    )
    assert (whole.text, whole.quoted) == (said, False)
    assert cut.quoted
    assert cut.text.endswith(cut.passages[0].text)


def test_a_name_that_is_in_the_documents_is_never_denied(index):
    found = answer(Says(NOT_FOUND), index, "What does `heapq.nlargest` do?")
    assert found.found
    assert found.quoted
    assert found.citations[0].title == "heapq.nlargest"
    assert found.text.endswith(found.passages[0].text)
