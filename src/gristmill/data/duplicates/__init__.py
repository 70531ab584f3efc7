"""Duplicates over a whole corpus: exact, near, and passages within documents; and evaluation texts in it."""

from gristmill.data.duplicates.contaminated import drop_contaminated
from gristmill.data.duplicates.decontaminate import EvalIndex, find, index_items
from gristmill.data.duplicates.exact import drop_exact, drop_same_url
from gristmill.data.duplicates.items import read_items
from gristmill.data.duplicates.lines import Floor, drop_repeated
from gristmill.data.duplicates.near import NearConfig, NearSummary, drop_near
from gristmill.data.duplicates.substring import cut_passages

__all__ = [
    "EvalIndex",
    "Floor",
    "NearConfig",
    "NearSummary",
    "cut_passages",
    "drop_contaminated",
    "drop_exact",
    "drop_near",
    "drop_repeated",
    "drop_same_url",
    "find",
    "index_items",
    "read_items",
]
