"""Several indexes searched as one."""

from __future__ import annotations

from collections.abc import Sequence

from gristmill.retrieval.index import Passage, Searchable
from gristmill.retrieval.terms import index_text, parse_question


class Together:
    """The passages of several indexes. BM25 of one index says nothing beside that of another, where the same word may
    be rare or common; so passages found by their name come first, then those that hold most of what the question is
    about, and among equals the better placed in its own index, of the index that was given first."""

    def __init__(self, parts: Sequence[Searchable]) -> None:
        self.parts = tuple(parts)

    def search(self, question: str, k: int = 3) -> list[Passage]:
        """The best passages for a question, at most `k`, as each index scores its own."""
        subject = {
            term for word in parse_question(question).subject for term in index_text(word).split()
        }

        def key(found: tuple[int, int, Passage]) -> tuple[bool, int, int, int]:
            part, place, passage = found
            held = subject & set(index_text(f"{passage.title} {passage.text}").split())
            return not passage.by_name, -len(held), place, part

        found = [
            (number, place, passage)
            for number, part in enumerate(self.parts)
            for place, passage in enumerate(part.search(question, k))
        ]
        return [passage for _, _, passage in sorted(found, key=key)[:k]]
