"""Blocks rounded under an importance matrix: the bytes of llama.cpp, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest

from gristmill.errors import RequestError
from gristmill.formats.gguf import WRITABLE, GGMLType, dequantize, quantize
from tests.formats.gguf.test_blocks import SHAPE, VALUES, by_name

BLOCKS = sorted(type for type in WRITABLE if type.block_size > 1)
WEIGHTED = [type for type in BLOCKS if type != GGMLType.Q8_0]


def importances() -> dict[str, np.ndarray]:
    """Mean squares of columns, from tame to wild; activations' are between the first two."""
    rng = np.random.default_rng(5)
    tame = np.exp(rng.standard_normal(SHAPE[1]))
    kinds = {
        "tame": tame,
        "few columns are all": rng.standard_normal(SHAPE[1]) ** 8,
        "some columns are nothing": np.where(rng.random(SHAPE[1]) < 0.3, 0, tame),
        "nothing": np.zeros(SHAPE[1]),
    }
    return {kind: values.astype(np.float32) for kind, values in kinds.items()}


IMPORTANCES = importances()


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("type", BLOCKS, ids=by_name)
def test_writes_the_bytes_that_llama_cpp_writes(type, importance, llama_cpp_quantize):
    columns = IMPORTANCES[importance]
    compared = 0
    for kind, x in VALUES.items():
        expected = llama_cpp_quantize(x, type, columns)
        if not np.isfinite(dequantize(expected, type)).all():  # a fit that left float16
            with pytest.raises(RequestError, match=f"too large for {type.name}"):
                quantize(x, type, columns)
            continue
        ours = quantize(x, type, columns)
        differing = (ours != expected).reshape(-1, type.block_bytes).any(axis=1)
        assert not differing.any(), f"{kind}: {differing.sum()} of {differing.size} blocks differ"
        compared += 1
    assert compared >= len(VALUES) - 1


@pytest.mark.parametrize("type", WEIGHTED, ids=by_name)
def test_the_weighted_error_falls(type):
    columns = IMPORTANCES["few columns are all"]

    def error(raw: np.ndarray) -> float:
        return float(((dequantize(raw, type) - x) ** 2 * columns).sum())

    for kind in ("weights", "outliers", "uneven"):
        x = VALUES[kind]
        assert error(quantize(x, type, columns)) < 0.9 * error(quantize(x, type))


def test_types_without_a_search_take_no_notice():
    x, columns = VALUES["weights"], IMPORTANCES["tame"]
    for type in (GGMLType.Q8_0, GGMLType.F16, GGMLType.BF16, GGMLType.F32):
        assert np.array_equal(quantize(x, type, columns), quantize(x, type))


@pytest.mark.parametrize("type", WEIGHTED, ids=by_name)
def test_rows_and_stacks_do_not_matter(type):
    """More than the piece worked on at once, row by row, and stacked as experts are."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((40, 2048)).astype(np.float32)
    columns = IMPORTANCES["tame"]
    whole = quantize(x, type, columns)
    assert np.array_equal(np.stack([quantize(row, type, columns) for row in x]), whole)
    assert np.array_equal(
        quantize(x.reshape(2, 20, 2048), type, columns).reshape(whole.shape), whole
    )
    assert np.array_equal(quantize(x.astype(np.float64), type, columns), whole)
    assert quantize(x[:0], type, columns).shape == (0, type.nbytes(2048))


def test_importance_that_is_none():
    x = VALUES["weights"]
    with pytest.raises(
        RequestError, match=r"rows of 2048 need an importance of as many columns, not \[100\]"
    ):
        quantize(x, GGMLType.Q4_K, np.ones(100, np.float32))
    for bad in (np.nan, np.inf, -1.0):
        columns = IMPORTANCES["tame"].copy()
        columns[9] = bad
        with pytest.raises(RequestError, match="must be finite and not below 0"):
            quantize(x, GGMLType.Q4_K, columns)
