"""Threads share the work of quantizing: their number is not in the bytes."""

from __future__ import annotations

import numpy as np
import pytest

from gristmill.formats.gguf import GGMLType, quantize
from gristmill.formats.gguf.pack import PACK, WEIGHTED

# 307,200 weights: more than the 131,072 that one thread keeps for itself, so two threads begin at two places and
# three at three. A row of three superblocks has some of these places inside of it.
SHAPE = (400, 768)


@pytest.mark.parametrize("type", sorted(PACK), ids=lambda type: type.name)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_any_number_of_threads_gives_the_same_bytes(type: GGMLType, weighted: bool):
    rng = np.random.default_rng(int(type))
    # Rows of different size and columns that matter differently: what is out of place shows.
    x = rng.standard_normal(SHAPE) * np.exp(rng.uniform(-3, 3, (SHAPE[0], 1)))
    x = x.astype(np.float32)
    importance = np.exp(rng.uniform(-4, 4, SHAPE[1])).astype(np.float32) if weighted else None
    alone = quantize(x, type, importance, threads=1)
    for threads in (2, 3):
        assert quantize(x, type, importance, threads=threads).tobytes() == alone.tobytes()
    if weighted and type in WEIGHTED:
        assert alone.tobytes() != quantize(x, type).tobytes()
