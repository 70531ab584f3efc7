"""An answer as output items, and the events by which a stream tells them: both from the same pieces."""

from __future__ import annotations

from collections.abc import Iterable

from gristmill.lm import TokenLogprob
from gristmill.serve.exchange import Piece
from gristmill.serve.openai.response_items import Fields, new_id
from gristmill.serve.openai.shapes import dumps, logprob_entries
from gristmill.serve.parsing import Reasoning, Text, ToolArguments, ToolStart
from gristmill.tokenizer import Tokenizer


class EventWriter:
    """Numbers the events of one stream and writes them as server-sent ones."""

    def __init__(self) -> None:
        self._number = 0

    def write(self, events: Iterable[Fields]) -> bytes:
        return b"".join(map(self._written, events))

    def _written(self, event: Fields) -> bytes:
        numbered = dumps({**event, "sequence_number": self._number})
        self._number += 1
        return f"event: {event['type']}\ndata: {numbered}\n\n".encode()


class Output:
    """The items so far; the last one may still be open, and its text is filled in when it is closed."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        """tokenizer: of the tokens whose log-probabilities are shown with the text; None: they are not."""
        self.items: list[Fields] = []
        self._open = False
        self._said: list[str] = []  # of the open item
        self._logprobs = _TextLogprobs(tokenizer)
        self._entries: list[Fields] = []  # log-probabilities of the open item

    def take(self, piece: Piece) -> list[Fields]:
        """The events of this piece. The last one closes what is open."""
        told: list[Fields] = []
        entries = self._logprobs.of(piece)
        for event in piece.events:
            match event:
                case Text(text):
                    told += self._text(text, entries)
                    entries = []
                case Reasoning(text):
                    told += self._reasoning(text)
                case ToolStart(_, id, name):
                    told += self._call(id, name)
                case ToolArguments(_, text):
                    told += self._delta("function_call_arguments.delta", text)
                case _:
                    told += self.close("completed")
        if piece.end is None:
            return told
        if entries or not self.items:  # what the last tokens said is held back, or nothing was said
            told += self._text("", entries)
        cut_short = piece.end.finish_reason == "length"
        return told + self.close("incomplete" if cut_short else "completed")

    def close(self, status: str) -> list[Fields]:
        """End the open item, if there is one."""
        if not self._open:
            return []
        self._open = False
        item, text = self.items[-1], "".join(self._said)
        item["status"] = status
        told: list[Fields] = []
        if item["type"] == "function_call":
            item["arguments"] = text
            told.append(self._event("function_call_arguments.done", arguments=text))
        else:
            part = item["content"][0]
            part["text"] = text
            more = {}
            if item["type"] == "message":
                part["logprobs"] = more["logprobs"] = self._entries
            told.append(self._event(f"{part['type']}.done", text=text, content_index=0, **more))
            told.append(self._event("content_part.done", part=part, content_index=0))
        return [*told, self._item_event("done")]

    def _text(self, text: str, entries: list[Fields]) -> list[Fields]:
        told: list[Fields] = []
        if not self._is_open("message"):
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            fields = {"type": "message", "role": "assistant", "content": []}
            told = self._begin({"id": new_id("msg"), **fields}, part)
        self._entries += entries
        if text or entries:
            told += self._delta("output_text.delta", text, content_index=0, logprobs=entries)
        return told

    def _reasoning(self, text: str) -> list[Fields]:
        told: list[Fields] = []
        if not self._is_open("reasoning"):
            fields = {"type": "reasoning", "summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
            told = self._begin({"id": new_id("rs"), **fields}, part)
        return told + self._delta("reasoning_text.delta", text, content_index=0)

    def _call(self, id: str, name: str) -> list[Fields]:
        fields = {"type": "function_call", "call_id": id, "name": name, "arguments": ""}
        return self._begin({"id": new_id("fc"), **fields}, None)

    def _is_open(self, kind: str) -> bool:
        return self._open and self.items[-1]["type"] == kind

    def _begin(self, item: Fields, part: Fields | None) -> list[Fields]:
        # A call that ends before it is complete was none that can be made.
        told = self.close("incomplete" if self._is_open("function_call") else "completed")
        self.items.append({**item, "status": "in_progress"})
        self._open, self._said, self._entries = True, [], []
        told.append(self._item_event("added"))
        if part is not None:
            self.items[-1]["content"] = [part]
            told.append(self._event("content_part.added", part={**part}, content_index=0))
        return told

    def _delta(self, kind: str, text: str, **more: object) -> list[Fields]:
        self._said.append(text)
        return [self._event(kind, delta=text, **more)]

    def _event(self, kind: str, **fields: object) -> Fields:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{kind}", **place, **fields}

    def _item_event(self, what: str) -> Fields:
        item = {**self.items[-1]}
        return {
            "type": f"response.output_item.{what}",
            "output_index": len(self.items) - 1,
            "item": item,
        }


class _TextLogprobs:
    """Which tokens' log-probabilities belong to an answer's text, and not to its thoughts, calls and marks."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._pending: list[
            TokenLogprob
        ] = []  # since the last event, which will tell what they were
        self._after_other = False

    def of(self, piece: Piece) -> list[Fields]:
        if self._tokenizer is None:
            return []
        self._pending += piece.logprobs
        if not piece.events and piece.end is None:
            return []
        said = "".join(event.text for event in piece.events if isinstance(event, Text))
        tokens, self._pending = self._pending, []
        after_other = self._after_other
        if piece.events:
            self._after_other = not isinstance(piece.events[-1], Text)
            after_other = after_other or not isinstance(piece.events[0], Text)
        if after_other:
            tokens = self._of_size(tokens[::-1], len(said.encode()))[::-1]
        elif self._after_other:
            tokens = self._of_size(tokens, len(said.encode()))
        return logprob_entries(self._tokenizer, tokens)

    def _of_size(self, tokens: list[TokenLogprob], size: int) -> list[TokenLogprob]:
        """The fewest of the first tokens that hold `size` bytes."""
        assert self._tokenizer is not None
        count = 0
        while count < len(tokens) and size > 0:
            size -= len(self._tokenizer.token_bytes(tokens[count].token_id))
            count += 1
        return tokens[:count]
