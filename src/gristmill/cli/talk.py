"""A conversation: what was said, how the model is asked, and the file it is kept in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.cli.batch import check_messages
from gristmill.errors import RequestError
from gristmill.files import write_text

if TYPE_CHECKING:
    from gristmill.lm import LM, Message, SamplingParams
    from gristmill.retrieval import Answer, Index


@dataclass
class Talk:
    """Asks, and remembers what was said. `asked` is the last question, also when it has no answer."""

    lm: LM
    params: SamplingParams
    index: Index | None = None
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    asked: str | None = None
    retries: int = 0  # of the last question

    def ask(self, question: str) -> Iterator[str | Answer]:
        """The answer piece by piece; with an index, at the end the Answer with its citations.

        A question that fails or is stopped before its end is not remembered.
        """
        self.asked = question
        messages = [*self.told, *self.turns, {"role": "user", "content": question}]
        said = ""
        for piece in self._pieces(messages):
            said = said + piece if isinstance(piece, str) else piece.own_words
            yield piece
        self.turns += [messages[-1], {"role": "assistant", "content": said}]

    @property
    def told(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def new(self) -> None:
        self.turns, self.asked, self.retries = [], None, 0

    def undo(self) -> str | None:
        """Forget the last question and its answer; the question, or None when there was none."""
        if not self.turns:
            self.asked = None
            return None
        *self.turns, question, _ = self.turns
        self.asked, self.retries = (self.turns[-2]["content"] if self.turns else None), 0
        return question["content"]

    def retry(self) -> str | None:
        """Forget the last answer; the question to ask again, with the next seed if one is fixed."""
        question = self.asked
        if self.turns and self.turns[-2]["content"] == question:
            self.turns = self.turns[:-2]
        self.retries += 1
        return question

    def save(self, path: Path) -> None:
        """As a line of the data that chat models are tuned on: {"messages": […]}.

        Raises RequestError rather than write over a file that is no conversation.
        """
        path = path.expanduser()
        if path.exists():
            try:
                _read(path)
            except RequestError:
                raise RequestError(
                    f"{path} is there already and holds no conversation; choose another name"
                ) from None
        messages = [*self.told, *self.turns]
        write_text(path, json.dumps({"messages": messages}, ensure_ascii=False) + "\n")

    def load(self, path: Path) -> None:
        """What `save` wrote. Raises RequestError for anything else."""
        messages = _read(path.expanduser())
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        turns = messages[1:] if system is not None else messages
        roles = [message["role"] for message in turns]
        if roles != ["user", "assistant"] * (len(turns) // 2):
            raise RequestError(
                f"{path}: questions and answers must take turns, an answer at the end"
            )
        self.system, self.turns, self.retries = system, turns, 0
        self.asked = turns[-2]["content"] if turns else None

    def _pieces(self, messages: list[Message]) -> Iterator[str | Answer]:
        params = self.params
        if params.seed is not None and self.retries:
            params = replace(params, seed=(params.seed + self.retries) % 2**64)
        if self.index is None:
            for chunk in self.lm.stream_chat(messages, params):
                yield chunk.text
                if chunk.completion is not None:
                    chunk.completion.checked()
        else:
            from gristmill.retrieval import answer_stream

            yield from answer_stream(self.lm, self.index, messages, params)


def _read(path: Path) -> list[Message]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"there is no file {path}") from None
    except ValueError as error:
        raise RequestError(f"{path} is not one conversation: {error}") from None
    messages = found.get("messages") if isinstance(found, dict) else None
    if messages != []:
        try:
            check_messages(messages)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from None
    return messages or []
