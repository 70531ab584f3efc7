"""From raw sources to clean, deduplicated, split documents, and what is derived from them."""

from gristmill.data.build import BuildConfig, source_fingerprint
from gristmill.data.facts import Fact, FactsConfig, read_facts
from gristmill.data.grounding import NOT_FOUND, described, grounded, passage, prose_passage
from gristmill.data.prose import headings_of, pieces
from gristmill.data.pyfacts import module_name
from gristmill.data.questions import QuestionsConfig
from gristmill.data.schema import Document, documents, documents_dir
from gristmill.data.summary import summarize
from gristmill.data.tokens import TokensConfig

__all__ = [
    "NOT_FOUND",
    "BuildConfig",
    "Document",
    "Fact",
    "FactsConfig",
    "QuestionsConfig",
    "TokensConfig",
    "described",
    "documents",
    "documents_dir",
    "grounded",
    "headings_of",
    "module_name",
    "passage",
    "pieces",
    "prose_passage",
    "read_facts",
    "source_fingerprint",
    "summarize",
]
