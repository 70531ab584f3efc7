"""Blocks of every type against the `gguf` package and llama.cpp: the same bits both ways."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from gristmill.errors import RequestError
from gristmill.formats.gguf import WRITABLE, GGMLType, dequantize, quantize
from tests.formats.gguf.memory import peak_bytes

WRITTEN = sorted(WRITABLE)
BLOCKS = [type for type in WRITTEN if type.block_size > 1]
# The package has no writer for these; llama.cpp is the only reference.
K_TYPES = [GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K]
SHAPE = (16, 2048)


def by_name(type: GGMLType) -> str:
    return type.name


def theirs(type: GGMLType) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[type.name]


def same_bits(ours: np.ndarray, expected: np.ndarray) -> bool:
    """Equal as bits, so that −0 is not 0; any NaN equals any NaN."""
    nan = np.isnan(ours) & np.isnan(expected)
    return bool(((ours.view(np.uint32) == expected.view(np.uint32)) | nan).all())


def values() -> dict[str, np.ndarray]:
    """float32 arrays of kinds that take different ways through the quantizers."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(SHAPE)
    sparse = np.where(rng.random(SHAPE) < 0.7, 0, normal)
    outliers = normal * np.where(rng.random(SHAPE) < 0.01, 50, 1)
    # Sub-blocks of very different size: some scales round to zero beside their neighbours'.
    uneven = normal * np.exp(rng.uniform(-12, 4, (SHAPE[0], SHAPE[1] // 16))).repeat(16, axis=1)
    ties = rng.integers(-8, 9, SHAPE) / 2
    kinds = {
        "weights": normal * 0.02,
        "outliers": outliers,
        "cauchy": rng.standard_cauchy(SHAPE).clip(-1e4, 1e4),
        "sparse": sparse,
        "zeros": np.zeros(SHAPE),
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "constant": rng.standard_normal((SHAPE[0], SHAPE[1] // 256)).repeat(256, axis=1),
        "one a block": np.where(np.arange(SHAPE[1]) % 256 == 7, normal, 0),
        "ties": ties,
        "uneven": uneven,
        "below float16": normal * 1e-7,
        "far below float16": normal * 1e-20,
        "from denormal to one": normal * np.exp(rng.uniform(-100, 2, SHAPE)),
        "large": normal.clip(-4, 4) * 1.5e4,
    }
    return {kind: x.astype(np.float32) for kind, x in kinds.items()}


VALUES = values()


@pytest.mark.parametrize("type", list(GGMLType), ids=by_name)
def test_reads_any_bytes_as_the_gguf_package_does(type):
    """Random bytes are every scale there is, NaN, infinity, denormal and negative among them."""
    rng = np.random.default_rng(int(type))
    raw = rng.integers(0, 256, (33, 257 * type.block_bytes), dtype=np.uint8)
    raw[1], raw[2], raw[3, ::2] = 0, 255, 0
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, theirs(type))
    ours = dequantize(raw, type)
    assert ours.dtype == np.float32 and ours.shape == (33, 257 * type.block_size)
    assert np.isfinite(expected).any() and same_bits(ours, expected)


def test_reads_every_half_float_and_every_mxfp4_block_exponent():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    assert same_bits(dequantize(halves, GGMLType.F16), halves.view(np.float16).astype(np.float32))
    assert same_bits(
        dequantize(halves, GGMLType.BF16), gguf.dequantize(halves, theirs(GGMLType.BF16))
    )
    blocks = np.tile(np.arange(16, dtype=np.uint8) * 17, (256, 1))
    blocks = np.hstack([np.arange(256, dtype=np.uint8)[:, None], blocks])
    with np.errstate(over="ignore"):
        expected = gguf.dequantize(blocks, theirs(GGMLType.MXFP4))
    assert same_bits(dequantize(blocks, GGMLType.MXFP4), expected)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("type", WRITTEN, ids=by_name)
def test_writes_the_bytes_that_llama_cpp_writes(type, kind, llama_cpp_quantize):
    ours, expected = quantize(VALUES[kind], type), llama_cpp_quantize(VALUES[kind], type)
    if (
        type == GGMLType.F16
    ):  # here only a rounding of the input, and all are roundings to nearest even
        assert (ours.view(np.float16) == expected.view(np.float16)).all()
    differing = (ours != expected).reshape(-1, type.block_bytes).any(axis=1)
    assert not differing.any(), f"{differing.sum()} of {differing.size} blocks differ"


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("type", [t for t in WRITTEN if t not in K_TYPES], ids=by_name)
def test_writes_the_bytes_that_the_gguf_package_writes(type, kind):
    with np.errstate(all="ignore"):
        expected = gguf.quantize(VALUES[kind], theirs(type)).view(np.uint8)
    assert np.array_equal(quantize(VALUES[kind], type), expected)


@pytest.mark.parametrize("type", K_TYPES, ids=by_name)
def test_the_package_has_no_writer_to_compare_with(type):
    """When it gets one, the test above should use it."""
    with pytest.raises(NotImplementedError):
        gguf.quantize(VALUES["weights"], theirs(type))


@pytest.mark.parametrize("type", BLOCKS, ids=by_name)
def test_denormal_blocks_read_back_as_nothing(type):
    """Their scales are zero in float16, whatever the codes are (where 1/d overflows, ggml's are undefined)."""
    x = np.random.default_rng(2).standard_normal(SHAPE) * 1e-40
    back = dequantize(quantize(x.astype(np.float32), type), type)
    assert (back == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type", BLOCKS, ids=by_name)
def test_block_types_refuse_nan_and_infinity(type, bad):
    x = VALUES["weights"].copy()
    x[5, 700] = bad
    with pytest.raises(RequestError, match=f"NaN or infinity.*{type.name}"):
        quantize(x, type)


@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.F16, GGMLType.BF16], ids=by_name)
def test_float_types_keep_nan_and_infinity(type):
    bits = np.array([0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7FC00000, 1, 0x80000000])
    x = bits.astype(np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        expected = gguf.quantize(x, theirs(type)).view(np.uint8)
    ours = quantize(x, type)
    assert np.array_equal(ours, expected)
    assert np.array_equal(np.isnan(dequantize(ours, type)), np.isnan(x))
    assert (np.isinf(dequantize(ours, type)) == np.isinf(x)).all()


@pytest.mark.parametrize("huge", [3e38, 1e15, 1.2e9, 2.0**31])
@pytest.mark.parametrize("type", BLOCKS, ids=by_name)
def test_what_a_block_cannot_hold_is_refused(type, huge):
    x = VALUES["weights"].copy()
    x[3, 11] = -huge
    with pytest.raises(RequestError, match=f"too large for {type.name}"):
        quantize(x, type)


@pytest.mark.parametrize("type", BLOCKS, ids=by_name)
def test_the_largest_value_held_reads_back_finite_and_one_above_is_refused(type):
    """The edge is where the scale leaves float16: searched for, since it differs from type to type."""
    x = np.zeros(256, np.float32)

    def holds(value: float) -> bool:
        x[9] = value
        try:
            back = dequantize(quantize(x, type), type)
        except RequestError:
            return False
        assert np.isfinite(back).all() and back[9] == pytest.approx(value, rel=0.05)
        return True

    low, high = 1.0, 1e9
    assert holds(low) and not holds(high)
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    assert low > 60_000


def test_float16_overflow_is_refused():
    quantize(np.float32([65504]), GGMLType.F16)
    with pytest.raises(RequestError, match=r"6.6e\+04 is too large for F16"):
        quantize(np.float32([1, 66000]), GGMLType.F16)
    with pytest.raises(RequestError, match="too large for BF16"):
        quantize(np.float32([3.4e38]), GGMLType.BF16)


@pytest.mark.parametrize("type", WRITTEN, ids=by_name)
def test_pieces_strides_and_dtypes_do_not_matter(type):
    """An array larger than the piece worked on at once, its parts, a strided view, and other float types."""
    x = np.random.default_rng(3).standard_normal((40, 2048)).astype(np.float16).astype(np.float32)
    whole = quantize(x, type)
    assert whole.shape == (40, type.nbytes(2048))
    assert np.array_equal(np.stack([quantize(row, type) for row in x]), whole)
    assert np.array_equal(quantize(np.asfortranarray(x), type), whole)
    assert np.array_equal(quantize(x.reshape(2, 20, 2048), type).reshape(whole.shape), whole)
    assert np.array_equal(quantize(x.astype(np.float16), type), whole)
    assert np.array_equal(quantize(x.astype(np.float64), type), whole)
    assert np.array_equal(dequantize(whole[::2], type), dequantize(whole, type)[::2])
    assert quantize(x[:0], type).shape == (0, type.nbytes(2048))


@pytest.mark.parametrize("type", WRITTEN, ids=by_name)
def test_memory_is_the_result_and_a_little_more(type):
    x = np.zeros((1024, 2048), np.float32)  # 8 MB
    with peak_bytes() as quantizing:
        raw = quantize(x, type)
    with peak_bytes() as reading:
        dequantize(raw, type)
    assert quantizing[0] < raw.nbytes + 3e6 and reading[0] < x.nbytes + 3e6


@pytest.mark.parametrize("type", [GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.MXFP4], ids=by_name)
def test_types_that_are_only_read_say_so(type):
    with pytest.raises(
        RequestError, match=f"{type.name} is read but not written; written are .*Q4_K"
    ):
        quantize(VALUES["weights"], type)


def test_arrays_that_are_not_rows_of_blocks():
    with pytest.raises(RequestError, match=r"a multiple of 32 a row, not float32 \[2, 33\]"):
        quantize(np.zeros((2, 33), np.float32), GGMLType.Q8_0)
    with pytest.raises(RequestError, match="not int64"):
        quantize(np.zeros(32, np.int64), GGMLType.Q8_0)
    with pytest.raises(RequestError, match=r"multiple of 34 bytes, not from uint8 \[35\]"):
        dequantize(np.zeros(35, np.uint8), GGMLType.Q8_0)
    with pytest.raises(RequestError, match="not from float32"):
        dequantize(np.zeros(34, np.float32), GGMLType.Q8_0)


@pytest.mark.parametrize("type", list(GGMLType), ids=by_name)
def test_sizes_are_those_of_the_gguf_package(type):
    assert (type.block_size, type.block_bytes) == gguf.GGML_QUANT_SIZES[theirs(type)]
    assert int(type) == int(theirs(type))
