"""Retrieval: passages of the documents, an index over them, and answers that cite them."""

from gristmill.retrieval.answer import Answer, Grounding, Prompt, answer, answer_stream, supports
from gristmill.retrieval.index import Index, IndexConfig, Passage, Searchable, build, run
from gristmill.retrieval.together import Together

__all__ = [
    "Answer",
    "Grounding",
    "Index",
    "IndexConfig",
    "Passage",
    "Prompt",
    "Searchable",
    "Together",
    "answer",
    "answer_stream",
    "build",
    "run",
    "supports",
]
