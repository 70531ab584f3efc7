"""Generation: requests in flight as one batch, sampling, stop strings, likelihoods of texts."""

from gristmill.engine.batch import Batch, Generation
from gristmill.engine.engine import Engine
from gristmill.engine.inspection import Candidate, Inspection, Read, inspect
from gristmill.engine.scoring import target_logprobs

__all__ = [
    "Batch",
    "Candidate",
    "Engine",
    "Generation",
    "Inspection",
    "Read",
    "inspect",
    "target_logprobs",
]
