"""Answers from an index: search, put the passages before the question, ask the model, say what supports it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gristmill.data import NOT_FOUND, grounded
from gristmill.errors import RequestError
from gristmill.lm import LM, Message, SamplingParams
from gristmill.retrieval.index import Passage, Searchable
from gristmill.retrieval.terms import FRAME_WORDS, STOP_WORDS, index_text

_SUPPORT = 0.5
_NEAR_BEST = 0.8
_QUOTE_BELOW = 0.75


@dataclass(frozen=True)
class Answer:
    """text: what to show. passages: what the model was given, numbered from 1 as in the prompt.

    citations: the passages that support the text (see `supports`). found: whether the documents hold the
    answer, as far as search and model can tell; False means that the text says so. quotation: what the text
    ends with when the model's own words are not what the passages say: the best passage, word for word.
    """

    text: str
    passages: tuple[Passage, ...]
    citations: tuple[Passage, ...]
    found: bool
    quotation: str = ""

    @property
    def quoted(self) -> bool:
        return bool(self.quotation)

    @property
    def own_words(self) -> str:
        return self.text.removesuffix(self.quotation)


def answer(
    engine: LM,
    index: Searchable,
    question: str | Sequence[Message],
    params: SamplingParams | None = None,
    k: int = 3,
) -> Answer:
    """Answer a question, or the last user message of a conversation, from the index.

    Only that message is searched. When nothing is found the model is not asked. Where the prompt does not
    fit the model's context, earlier turns go first, then the last passages. Where the passages do not support
    what the model says, or it denies that the passage of a name that was asked for is there, the best passage
    is quoted after its words. Raises RequestError when there is no user message, or when not even one passage
    fits.
    """
    *_, last = answer_stream(engine, index, question, params, k)
    assert isinstance(last, Answer)
    return last


def answer_stream(
    engine: LM,
    index: Searchable,
    question: str | Sequence[Message],
    params: SamplingParams | None = None,
    k: int = 3,
) -> Iterator[str | Answer]:
    """`answer`, piece by piece: strings as the model writes them, and at the end the whole Answer.

    The joined strings are the Answer's text.
    """
    looked_up = Grounding(index, question, k)
    if not looked_up.prompts:
        yield NOT_FOUND
        yield looked_up.nothing_found()
        return
    for prompt in looked_up.prompts:
        written: list[str] = []
        ended = ""
        try:
            for chunk in engine.stream_chat(prompt.messages, params):
                if chunk.text:
                    written.append(chunk.text)
                    yield chunk.text
                if chunk.completion is not None:
                    ended = chunk.completion.checked().finish_reason
        except RequestError:
            if written or prompt is looked_up.prompts[-1]:
                raise
            continue
        judged = prompt.judge("".join(written), cut_short=ended == "length")
        if judged.quoted:
            yield judged.quotation
        yield judged
        return


@dataclass(frozen=True)
class Prompt:
    """What to ask the model, and the passages that it holds."""

    messages: list[Message]
    passages: tuple[Passage, ...]

    def judge(self, text: str, cut_short: bool) -> Answer:
        """What the model's words come to. cut_short: they stopped at max_tokens."""
        quotation = _quotation(text, self.passages, cut_short)
        found = bool(quotation) or not _denies(text)
        supporting = supports(text, self.passages) if found else ()
        citations = (self.passages[0],) if quotation else supporting
        return Answer(text + quotation, self.passages, citations, found, quotation)


class Grounding:
    """A question, or the last user message of a conversation, looked up.

    prompts: to try in this order until one fits the model's context; none when nothing was found.
    """

    def __init__(self, index: Searchable, question: str | Sequence[Message], k: int = 3) -> None:
        """k: passages. Raises RequestError when there is no user message."""
        asked, history = _split(question)
        passages = index.search(asked, k)
        self.prompts = _prompts(asked, history, passages) if passages else []

    def nothing_found(self) -> Answer:
        return Answer(NOT_FOUND, (), (), False)


def supports(text: str, passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """The passages that support a text, best first: those that hold at least half of its terms, and at least
    0.8 of the share that the best one holds.

    Terms are the words of the text (names also in parts), without function words and words of the
    question's frame; a text made only of such words counts all of them. The same text and passages always
    give the same citations; no model is asked.
    """
    held = [(_share(text, p), p) for p in passages]
    best = max((share for share, _ in held), default=0.0)
    cited = [(share, p) for share, p in held if share >= max(_SUPPORT, _NEAR_BEST * best)]
    return tuple(p for _, p in sorted(cited, key=lambda pair: -pair[0]))


def _share(text: str, passage: Passage) -> float:
    """The part of a text's terms that a passage holds."""
    terms = _terms(text)
    return len(terms & _terms(f"{passage.title} {passage.text}", every=True)) / max(1, len(terms))


def _terms(text: str, every: bool = False) -> set[str]:
    words = set(index_text(text).split())
    content = words - STOP_WORDS - FRAME_WORDS
    return words if every else content or words


def _split(question: str | Sequence[Message]) -> tuple[str, list[Message]]:
    """The message to search for, and the turns before it."""
    if isinstance(question, str):
        return question, []
    messages = list(question)
    for position in range(len(messages) - 1, -1, -1):
        if messages[position].get("role") == "user":
            return messages[position].get("content", ""), messages[:position]
    raise RequestError("the conversation has no user message, so there is no question to answer.")


def _prompts(asked: str, history: list[Message], passages: list[Passage]) -> list[Prompt]:
    """Longest first: with the earlier turns, without, then with fewer passages."""
    prompts: list[Prompt] = []
    for count in range(len(passages), 0, -1):
        given = tuple(passages[:count])
        message = {"role": "user", "content": grounded(asked, [p.text for p in given])}
        if count == len(passages) and history:
            prompts.append(Prompt([*history, message], given))
        prompts.append(Prompt([message], given))
    return prompts


def _denies(text: str) -> bool:
    return NOT_FOUND.rstrip(".").lower() in text.lower()


def _quotation(text: str, given: Sequence[Passage], cut_short: bool) -> str:
    """What to add to the model's words: '' where they stand on the passages, else the best passage."""
    best = given[0]
    if _denies(text):
        wanted = best.by_name
        lead = "The documents do have an entry of that name:"
    else:
        wanted = cut_short or max(_share(text, p) for p in given) < _QUOTE_BELOW
        lead = "The documents say:"
    return f"\n\n{lead}\n\n{best.text}" if wanted else ""
