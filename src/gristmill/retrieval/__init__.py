"""Retrieval: passages of the documents, an index over them, and answers that cite them."""

from gristmill.retrieval.answer import Answer, answer, answer_stream, supports
from gristmill.retrieval.index import Index, IndexConfig, Passage, build, run

__all__ = [
    "Answer",
    "Index",
    "IndexConfig",
    "Passage",
    "answer",
    "answer_stream",
    "build",
    "run",
    "supports",
]
