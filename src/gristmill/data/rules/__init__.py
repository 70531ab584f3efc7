"""Which documents are kept: signals held against the rules of a profile.

profile = with_limits(PROFILES["web"], {"stop_words": 1})
signals, text = measure(text, profile)
judge(signals, profile).reason
"""

from gristmill.data.rules.measure import measure
from gristmill.data.rules.profiles import PROFILES, in_language
from gristmill.data.rules.table import (
    Finding,
    Profile,
    Rule,
    Verdict,
    judge,
    nearly,
    with_limits,
)

__all__ = [
    "PROFILES",
    "Finding",
    "Profile",
    "Rule",
    "Verdict",
    "in_language",
    "judge",
    "measure",
    "nearly",
    "with_limits",
]
