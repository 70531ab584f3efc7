"""Duplicates over a whole corpus: exact, near, and passages within documents; and evaluation texts in it."""

from gristmill.data.duplicates.exact import drop_exact, drop_same_url
from gristmill.data.duplicates.near import NearConfig, drop_near

__all__ = ["NearConfig", "drop_exact", "drop_near", "drop_same_url"]
