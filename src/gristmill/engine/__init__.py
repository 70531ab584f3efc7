"""Generation: requests in flight over a paged cache, sampling, speculation, likelihoods of texts."""

from gristmill.engine.core import Load
from gristmill.engine.engine import Engine, best_of
from gristmill.engine.generation import Generation
from gristmill.engine.inspection import Candidate, Inspection, Read, inspect
from gristmill.engine.kept import CacheDtype
from gristmill.engine.scoring import target_logprobs
from gristmill.engine.stats import Stats

__all__ = [
    "CacheDtype",
    "Candidate",
    "Engine",
    "Generation",
    "Inspection",
    "Load",
    "Read",
    "Stats",
    "best_of",
    "inspect",
    "target_logprobs",
]
