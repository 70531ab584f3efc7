"""From a sentence back to the documents that taught it: verbatim spans in the training shards."""

from gristmill.data.trace.answer import Passage, Place, Span, Traced, stories, trace
from gristmill.data.trace.build import index_tokens
from gristmill.data.trace.index import Index, open_index, place
from gristmill.data.trace.rows import nearest, said

__all__ = [
    "Index",
    "Passage",
    "Place",
    "Span",
    "Traced",
    "index_tokens",
    "nearest",
    "open_index",
    "place",
    "said",
    "stories",
    "trace",
]
