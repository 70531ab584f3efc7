"""Generation: requests in flight as one batch, sampling, stop strings, likelihoods of texts."""

from gristmill.engine.batch import Batch, Generation
from gristmill.engine.engine import Engine
from gristmill.engine.inspection import Candidate, Inspection, Read, inspect

__all__ = ["Batch", "Candidate", "Engine", "Generation", "Inspection", "Read", "inspect"]
