"""Whole files: what gguf.GGUFWriter writes we read, what we write gguf.GGUFReader and llama.cpp read."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest

from gristmill.errors import RequestError, WorkError
from gristmill.formats.gguf import (
    WRITABLE,
    GGMLType,
    GGUFFile,
    LazyArray,
    ValueType,
    quantize,
    write_gguf,
)
from tests.formats.gguf.memory import peak_bytes

RNG = np.random.default_rng(0)


def some_tensors() -> dict[str, tuple[np.ndarray, GGMLType]]:
    """Name -> raw bytes [rows, bytes of a row] and type; every type, sizes that need padding."""
    tensors = {}
    for type in GGMLType:
        shape = (3, 5 * type.block_size)
        x = RNG.standard_normal(shape).astype(np.float32)
        any_bytes = RNG.integers(0, 120, (3, 5 * type.block_bytes), dtype=np.uint8)
        raw = quantize(x, type) if type in WRITABLE else any_bytes
        tensors[f"blk.0.{type.name.lower()}.weight"] = (raw, type)
    return tensors


TENSORS = some_tensors()


def their_file(path: Path, alignment: int | None = None) -> Path:
    """Metadata of every type and tensors of every type, by the package's writer."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 4294967295)
    writer.add_int32("i32", -2147483648)
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 1e-5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", 'zwölf Boxkämpfer 🥊 \x00 "\n')
    writer.add_array("strings", ["a", "", "日本", "b" * 300])
    writer.add_array("ints", [3, -1, 2])
    writer.add_array("floats", [0.5, float("inf")])
    writer.add_array("bools", [True, False, True])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_array("nested strings", [["x"], ["y", "zz"]])
    writer.add_array("deep", [[[1.5]], [[2.5], [3.5, 4.5]]])
    for name, (raw, type) in TENSORS.items():
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[type.name])
    writer.add_tensor("vector", np.arange(7, dtype=np.float32))
    writer.add_tensor("cube", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain(value):
    """Lazy and numpy arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, LazyArray) else value


def test_reads_metadata_of_every_type(tmp_path):
    file = GGUFFile.open(their_file(tmp_path / "a.gguf"))
    assert {key: plain(value) for key, value in file.metadata.items()} == {
        "general.architecture": "llama",
        "u8": 255,
        "i8": -128,
        "u16": 65535,
        "i16": -32768,
        "u32": 4294967295,
        "i32": -2147483648,
        "u64": 2**64 - 1,
        "i64": -(2**63),
        "f32": float(np.float32(1e-5)),
        "f64": 0.1,
        "yes": True,
        "no": False,
        "text": 'zwölf Boxkämpfer 🥊 \x00 "\n',
        "strings": ["a", "", "日本", "b" * 300],
        "ints": [3, -1, 2],
        "floats": [0.5, float("inf")],
        "bools": [True, False, True],
        "nested": [[1, 2], [3]],
        "nested strings": [["x"], ["y", "zz"]],
        "deep": [[[1.5]], [[2.5], [3.5, 4.5]]],
    }
    types = {key: type(value) for key, value in file.metadata.items()}
    assert (types["u8"], types["f32"], types["yes"], types["text"]) == (int, float, bool, str)
    assert file.typed_metadata["u16"].dtype == np.uint16 and file.metadata["ints"].dtype == np.int32
    strings = file.metadata["strings"]
    assert len(strings) == 4 and strings[-2] == "日本" and strings[1:3] == ["", "日本"]
    with pytest.raises(IndexError):
        strings[4]
    assert strings.kind == ValueType.STRING and repr(strings) == "<4 × STRING of a.gguf>"


@pytest.mark.parametrize("alignment", [None, 64, 1024])
def test_reads_tensors_of_every_type(tmp_path, alignment):
    path = their_file(tmp_path / "a.gguf", alignment)
    file, reader = GGUFFile.open(path), gguf.GGUFReader(path)
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    assert len(file.tensors) == len(GGMLType) + 2
    for theirs in reader.tensors:
        info = file.tensors[theirs.name]
        assert info.shape == tuple(reversed(theirs.shape.tolist()))
        assert (info.type, info.offset) == (int(theirs.tensor_type), theirs.data_offset)
        assert info.nbytes == theirs.n_bytes == file.raw(theirs.name).size
        values = file.load(theirs.name)
        assert values.shape == info.shape and values.dtype == np.float32 and values.flags.writeable
        assert np.array_equal(
            values, gguf.dequantize(theirs.data, theirs.tensor_type).reshape(info.shape), True
        )
    for name, (raw, _) in TENSORS.items():
        assert np.array_equal(file.raw(name), raw)
    assert file.load("cube")[1, 2, 3] == 23 and file.raw("cube").shape == (2, 3, 16)


def test_what_is_read_writes_back_byte_for_byte(tmp_path):
    """Types and order of metadata, offsets, padding: as the package's writer has them."""
    path = their_file(tmp_path / "a.gguf", 64)
    file = GGUFFile.open(path)
    copies = [(name, t.shape, t.type, file.raw(name)) for name, t in file.tensors.items()]
    write_gguf(tmp_path / "b.gguf", file.typed_metadata, copies)
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()
    # Over its own source: the mapping keeps the old file alive until the new one is whole.
    write_gguf(path, file.typed_metadata, copies)
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()


def test_version_2_reads_the_same(tmp_path):
    path = their_file(tmp_path / "a.gguf")
    data = bytearray(path.read_bytes())
    data[4] = 2
    (tmp_path / "v2.gguf").write_bytes(data)
    three, two = GGUFFile.open(path), GGUFFile.open(tmp_path / "v2.gguf")
    assert dict(three.tensors) == dict(two.tensors)
    assert list(map(plain, three.metadata.values())) == list(map(plain, two.metadata.values()))


PYTHON_VALUES = {
    "general.architecture": "llama",
    "count": 5,
    "below zero": -5,
    "large": 2**40,
    "largest below zero": -(2**40),
    "eps": 1e-5,
    "infinite": float("inf"),
    "flag": True,
    "template": "{{ bos }}\n🙂",
    "tokens": ["a", "b", "日"],
    "numpy strings": np.array(["a", "bb"]),
    "token types": [1, -3],
    "long": [1, 2**40],
    "scores": [0.5, -1.0],
    "flags": [True, False],
    "f64 array": np.array([0.1, 0.2]),
    "u8 array": np.array([1, 255], np.uint8),
    "bool array": np.array([True, False]),
    "empty": np.array([], np.float32),
    "u64 scalar": np.uint64(7),
    "f64 scalar": np.float64(0.1),
    "nested": [[1, 2], [3]],
}
WRITTEN_TYPES = {
    "count": [ValueType.UINT32],
    "below zero": [ValueType.INT32],
    "large": [ValueType.UINT64],
    "largest below zero": [ValueType.INT64],
    "eps": [ValueType.FLOAT32],
    "flag": [ValueType.BOOL],
    "tokens": [ValueType.ARRAY, ValueType.STRING],
    "numpy strings": [ValueType.ARRAY, ValueType.STRING],
    "token types": [ValueType.ARRAY, ValueType.INT32],
    "long": [ValueType.ARRAY, ValueType.INT64],
    "scores": [ValueType.ARRAY, ValueType.FLOAT32],
    "flags": [ValueType.ARRAY, ValueType.BOOL],
    "f64 array": [ValueType.ARRAY, ValueType.FLOAT64],
    "u8 array": [ValueType.ARRAY, ValueType.UINT8],
    "bool array": [ValueType.ARRAY, ValueType.BOOL],
    "u64 scalar": [ValueType.UINT64],
    "f64 scalar": [ValueType.FLOAT64],
    "nested": [ValueType.ARRAY, ValueType.ARRAY, ValueType.INT32],
}


def our_file(path: Path, **more) -> dict[str, tuple[np.ndarray, GGMLType]]:
    """A file of Python values and quantized tensors; returns the tensors' values and types."""
    tensors = {
        f"{type.name}.weight": (
            RNG.standard_normal((3, 3 * type.block_size)).astype(np.float32),
            type,
        )
        for type in sorted(WRITABLE)
    }
    write_gguf(
        path,
        {**PYTHON_VALUES, **more},
        [(name, x.shape, type, lambda x=x: x) for name, (x, type) in tensors.items()],
    )
    return tensors


@pytest.mark.parametrize("alignment", [32, 256])
def test_the_package_reads_what_we_write(tmp_path, alignment):
    tensors = our_file(tmp_path / "a.gguf", **{"general.alignment": alignment})
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {name: field for name, field in reader.fields.items() if "GGUF." not in name}
    assert list(fields) == [*PYTHON_VALUES, "general.alignment"]
    for key, types in WRITTEN_TYPES.items():
        assert [int(t) for t in fields[key].types] == types, key
    for key, value in PYTHON_VALUES.items():
        expected = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if key == "eps":
            expected = float(np.float32(value))
        if key == "nested":  # the package flattens on reading
            expected = [1, 2, 3]
        assert fields[key].contents() == expected, key
    assert [t.name for t in reader.tensors] == list(tensors)
    for theirs in reader.tensors:
        x, type = tensors[theirs.name]
        assert theirs.shape.tolist() == list(reversed(x.shape))
        assert theirs.data_offset % alignment == 0
        assert theirs.data.tobytes() == quantize(x, type).tobytes()
    assert (tmp_path / "a.gguf").stat().st_size % alignment == 0


def test_llama_cpp_reads_what_we_write(tmp_path, llama_cpp):
    """Through gguf_init_from_file, which checks offsets, padding and alignment more strictly than we do."""

    class Parameters(ctypes.Structure):
        _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]

    our_file(tmp_path / "a.gguf", nested=np.array([1.0]))  # llama.cpp takes no arrays of arrays
    file = GGUFFile.open(tmp_path / "a.gguf")
    init = llama_cpp.gguf_init_from_file
    init.argtypes, init.restype = [ctypes.c_char_p, Parameters], ctypes.c_void_p
    context = init(str(file.path).encode(), Parameters(True, None))
    assert context is not None

    def ask(function: str, result, *arguments):
        call = llama_cpp[function]
        call.argtypes, call.restype = [ctypes.c_void_p, *(t for t, _ in arguments)], result
        return call(context, *(value for _, value in arguments))

    assert ask("gguf_get_n_kv", ctypes.c_int64) == len(file.metadata)
    assert ask("gguf_get_n_tensors", ctypes.c_int64) == len(file.tensors)
    start = ask("gguf_get_data_offset", ctypes.c_size_t)
    for number, info in enumerate(file.tensors.values()):
        at = (ctypes.c_int64, number)
        assert ask("gguf_get_tensor_name", ctypes.c_char_p, at) == info.name.encode()
        assert ask("gguf_get_tensor_type", ctypes.c_int, at) == info.type
        assert ask("gguf_get_tensor_size", ctypes.c_size_t, at) == info.nbytes
        assert start + ask("gguf_get_tensor_offset", ctypes.c_size_t, at) == info.offset
    eps = ask("gguf_find_key", ctypes.c_int64, (ctypes.c_char_p, b"eps"))
    assert ask("gguf_get_val_f32", ctypes.c_float, (ctypes.c_int64, eps)) == np.float32(1e-5)
    ask("gguf_free", None)


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm"])  # llama.cpp's own vocabularies
def test_vocabularies_of_llama_cpp_read_and_write_back(tmp_path, name):
    path = Path(__file__).parents[4] / f"shared/data/tokenizers/ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    file, reader = GGUFFile.open(path), gguf.GGUFReader(path)
    for key, value in file.metadata.items():
        assert plain(value) == reader.fields[key].contents(), key
    assert len(file.metadata) == len(reader.fields) - 3 and not file.tensors
    write_gguf(tmp_path / "copy.gguf", file.typed_metadata, [])
    original = path.read_bytes()
    assert (tmp_path / "copy.gguf").read_bytes() == original + bytes(-len(original) % 32)


def test_a_scalar_tensor(tmp_path):
    write_gguf(tmp_path / "a.gguf", {}, [("s", (), GGMLType.F32, np.array(2.5, np.float32))])
    file = GGUFFile.open(tmp_path / "a.gguf")
    assert file.tensors["s"].shape == () and file.load("s") == 2.5 and file.raw("s").shape == (4,)


def test_raw_is_a_view_of_the_file_that_outlives_it(tmp_path):
    our_file(tmp_path / "a.gguf")
    file = GGUFFile.open(tmp_path / "a.gguf")
    with peak_bytes() as peak:
        raw = file.raw("Q8_0.weight")
    assert peak[0] < 10_000
    expected = raw.copy()
    assert not file.metadata["f64 array"].flags.writeable
    on_disk = (tmp_path / "a.gguf").read_bytes()
    raw[0, 0] ^= 255  # this process's copy of a page
    assert (tmp_path / "a.gguf").read_bytes() == on_disk
    raw[0, 0] ^= 255
    del file
    (tmp_path / "a.gguf").unlink()
    assert np.array_equal(raw, expected)


def test_one_tensor_at_a_time(tmp_path):
    """Sources are called in order, each once, and peak memory is one of them and a piece."""
    called = []
    size = 1 << 22  # 16 MB each

    def source(number: int):
        def make() -> np.ndarray:
            called.append(number)
            return np.full((size // 1024, 1024), number, np.float32)

        return make

    types = [GGMLType.Q8_0, GGMLType.F32, GGMLType.Q6_K, GGMLType.F16, GGMLType.Q4_0]
    tensors = [(f"t{n}", (size // 1024, 1024), t, source(n)) for n, t in enumerate(types)]
    with peak_bytes() as peak:
        write_gguf(tmp_path / "a.gguf", {}, iter(tensors))
    assert called == [0, 1, 2, 3, 4]
    assert peak[0] < 1.2 * 4 * size
    file = GGUFFile.open(tmp_path / "a.gguf")
    assert (file.load("t4") == 4).all() and (file.load("t2")[-1, -1] - 2) < 0.01


@pytest.mark.parametrize(
    "failure", [RuntimeError("stop"), KeyboardInterrupt(), OSError(28, "full")]
)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "a.gguf"
    our_file(path)
    before = path.read_bytes()

    def fail():
        raise failure

    expected = WorkError if isinstance(failure, OSError) else type(failure)
    tensors = [("x", (64,), GGMLType.F32, np.ones(64, np.float32)), ("y", (1,), GGMLType.F32, fail)]
    with pytest.raises(expected):
        write_gguf(path, {}, tensors)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


X = np.ones((2, 64), np.float32)


@pytest.mark.parametrize(
    ("metadata", "tensors", "says"),
    [
        ({"": 1}, [], "key '' must have 1 to 65535 bytes"),
        ({"k": b"bytes"}, [], "key 'k': a GGUF file cannot hold a value of type bytes"),
        ({"k": None}, [], "cannot hold a value of type NoneType"),
        ({"k": {"a": 1}}, [], "cannot hold a value of type dict"),
        ({"k": []}, [], "these are nothing; give an empty numpy array"),
        ({"k": [1, "a"]}, [], "must be of one type, these are STRING, UINT32"),
        ({"k": 2**64}, [], "key 'k': a number is too large for INT64"),
        ({"k": [2**63]}, [], "too large for INT64"),
        ({"k": 1e39}, [], "too large for FLOAT32"),
        ({"k": np.float16(1)}, [], "cannot hold numbers of type float16"),
        ({"k": np.ones(2, np.complex64)}, [], "cannot hold numbers of type complex64"),
        ({"k": "\ud800"}, [], "key 'k' is not Unicode text"),
        ({"general.alignment": 24}, [], "general.alignment must be a power of two"),
        ({"general.alignment": 0}, [], "general.alignment must be a power of two"),
        ({"general.alignment": "32"}, [], "general.alignment must be a power of two"),
        ({}, [("", (2, 64), "F32", X)], "a name must have 1 to 63 bytes"),
        ({}, [("é" * 32, (2, 64), "F32", X)], "a name must have 1 to 63 bytes"),
        ({}, [("x", (2, 64), "F32", X)] * 2, "tensor 'x' is given twice"),
        ({}, [("x", (1, 1, 1, 2, 64), "F32", X)], "up to 4 dimensions"),
        ({}, [("x", (0, 64), "F32", X)], "none empty"),
        ({}, [("x", (2, 64), "Q4_K", X)], "rows of 64, which are not whole blocks of 256 .Q4_K."),
        ({}, [("x", (), "Q8_0", X)], "rows of 1, which are not whole blocks of 32"),
        ({}, [("x", (64, 2), "F32", X)], r"source has the shape \[2, 64\], not \[64, 2\] .values."),
        ({}, [("x", (2, 64), "Q8_0", lambda: X[:1])], r"tensor 'x': its source has the shape \[1"),
        ({}, [("x", (2, 64), "Q8_0", X.astype(np.uint8))], r"not \[2, 68\] .the bytes of Q8_0."),
        ({}, [("x", (2, 64), "MXFP4", X)], "tensor 'x': MXFP4 is read but not written"),
        ({}, [("x", (2, 64), "Q8_0", X * np.nan)], "tensor 'x': NaN or infinity"),
        ({}, [("x", (2, 64), "F16", X * 1e6)], "tensor 'x': a value of 1e.06 is too large for F16"),
        ({}, [("x", (2, 64), "F16", X.astype(int))], "tensor 'x': F16 takes rows of floating-point"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_by_name(tmp_path, metadata, tensors, says):
    path = tmp_path / "a.gguf"
    tensors = [(name, shape, GGMLType[type], x) for name, shape, type, x in tensors]
    with pytest.raises(RequestError, match=says) as error:
        write_gguf(path, metadata, tensors)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_is_not_there(tmp_path):
    our_file(tmp_path / "a.gguf")
    file = GGUFFile.open(tmp_path / "a.gguf")
    for ask in (file.load, file.raw):
        with pytest.raises(
            RequestError, match=r'no tensor \'Q8.weight\'. Did you mean "Q8_0.weight"'
        ):
            ask("Q8.weight")
