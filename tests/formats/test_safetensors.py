"""Safetensors files: what the safetensors library writes reads equal; broken ones are refused in one line."""

from __future__ import annotations

import gc
import json
import os
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gristmill.errors import RequestError
from gristmill.formats.safetensors import SafetensorsFile
from gristmill.formats.safetensors_header import DTYPES, MAX_TENSORS
from tests.formats.gguf.memory import peak_bytes


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit."""
    return (
        ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and torch.equal(bits(ours), bits(theirs))
    )


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().reshape(-1).view(torch.uint8)


def every_dtype() -> dict[str, torch.Tensor]:
    """Random bits of each dtype in some shapes, scalars and nothing among them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, dtype in DTYPES.items():
        for shape in [(3, 5), (), (0, 4), (1, 2, 1, 3)]:
            count = torch.Size(shape).numel() * dtype.itemsize
            raw = torch.randint(0, 2 if name == "BOOL" else 256, (count,), generator=generator)
            tensors[f"{name} {list(shape)} ü"] = (
                raw.to(torch.uint8).view(dtype).view(shape)
                if count
                else torch.empty(shape, dtype=dtype)
            )
    return tensors


def build(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file from its parts; `header` is made JSON unless it is bytes, and its length may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape=(2,), offsets=(0, 8), **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def test_every_dtype_and_shape_reads_as_the_library_wrote_it(tmp_path):
    tensors = every_dtype()
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt", "ü\n": '"\\ 🥊'})
    file = SafetensorsFile.open(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt", "ü\n": '"\\ 🥊'}
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        info = file.tensors[name]
        assert (info.dtype, info.shape, info.nbytes) == (tensor.dtype, tensor.shape, tensor.nbytes)
        assert same(file.load(name), tensor), name


@pytest.mark.parametrize("spaces", range(8))
def test_tensors_at_any_address(tmp_path, spaces):
    """Old writers do not pad the header; the data then begins anywhere."""
    header = {
        "a": entry("U8", [1], [0, 1]),
        "b": entry("F32", [2], [1, 9]),
        "c": entry("I64", [1], [9, 17]),
    }
    text = json.dumps(header).encode() + b" " * spaces
    path = build(tmp_path / "a.safetensors", text, struct.pack("<B2fq", 7, 1.5, -2, -3))
    file = SafetensorsFile.open(path)
    assert file.load("a").tolist() == [7]
    assert file.load("b").tolist() == [1.5, -2] and file.load("c").tolist() == [-3]
    assert all(
        file.load(name).data_ptr() % file.tensors[name].dtype.itemsize == 0 for name in header
    )


def test_a_tensor_is_the_file_until_it_is_written_to(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(1 << 20, dtype=torch.float32)}, path)
    before = path.read_bytes()
    with peak_bytes() as peak:
        file = SafetensorsFile.open(path)
        x = file.load("x")
        x[5] = -1
    assert peak[0] < 20_000
    assert file.load("x")[5] == -1, "tensors of one name share their memory"
    assert path.read_bytes() == before and SafetensorsFile.open(path).load("x")[5] == 5
    del file
    path.unlink()
    assert x[-1] == (1 << 20) - 1 and x[5] == -1


def resident_bytes() -> int:
    """Pages of mapped files that this process holds."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssFile:")[1].split()[0])


def test_memory_of_a_conversion_is_that_of_one_tensor(tmp_path):
    count, size = 24, 1 << 20  # 4 MB each
    path = tmp_path / "a.safetensors"
    save_file({f"t{n}": torch.full((size,), float(n)) for n in range(count)}, path)

    def highest(release: bool) -> int:
        file = SafetensorsFile.open(path)
        before = most = resident_bytes()
        for name in file.tensors:
            assert file.load(name).double().mean() == int(name[1:])
            most = max(most, resident_bytes())
            if release:
                file.release(name)
        return most - before

    assert highest(release=False) > 0.9 * count * 4 * size
    assert highest(release=True) < 2.5 * 4 * size


def test_release_leaves_what_is_in_use_and_what_lies_beside(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({name: torch.full((20_000,), 1.0) for name in "abc"}, path)
    file = SafetensorsFile.open(path)
    a, b, c = (file.load(name) for name in "abc")
    for tensor in (a, b, c):
        tensor += 1
    part = b[9000:9002].view(torch.int32)  # far from the pages at its ends, which always stay
    array = part.numpy()
    del b, tensor
    file.release("b")
    del part
    gc.collect()
    file.release("b")
    assert array.view("f4").tolist() == [2, 2], "an array of a view of the tensor was alive"
    del array
    gc.collect()
    file.release("b")
    assert (a == 2).all() and (c == 2).all()
    fresh = file.load("b")
    # The pages at its ends are its neighbours' too, and stayed as they were.
    assert set(fresh.tolist()) == {1.0, 2.0} and (fresh[1024:-1024] == 1).all()
    with pytest.raises(RequestError, match="holds no tensor 'B'"):
        file.release("B")


def test_files_larger_than_memory_open(tmp_path):
    """As a 400 GB checkpoint in one file would; this one is a hole."""
    size = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    path = build(tmp_path / "a.safetensors", {"x": entry("U8", [size], [0, size])})
    os.truncate(path, path.stat().st_size + size)
    x = SafetensorsFile.open(path).load("x")
    assert x.shape == (size,) and x[-1] == 0


TEN_BILLION = 10_000_000_000
EIGHT = bytes(8)
GOOD = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
HOSTILE = {
    "empty": (b"", "too short for a safetensors file .0 bytes."),
    "nine bytes": (bytes(9), "too short"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer, not the file"),
    "no header": (struct.pack("<Q", 0) + EIGHT, "at byte 8: the header: 'the end' stands where"),
    "length": (struct.pack("<Q", 2**63) + EIGHT, "claim a header of 9223372036854775808 bytes, but"),
    "one too long": (struct.pack("<Q", 9) + b'{"a":{} ', "claim a header of 9 bytes, but the file has 16"),
    "list": ([], r"the header: '\[' stands where"),
    "text": ("abc", "the header: '\"' stands where"),
    "depth": (b"[" * 100_000, r"'\[' stands where '{'"),
    "depth of an entry": (b'{"a":' * 100_000, "tensor 'a' has the unknown field 'a'"),
    "depth of a shape": (b'{"a":{"shape":' + b"[" * 100_000, "its shape must be a list of whole"),
    "many lists": (b'{"a":[' + b"[]," * 100_000 + b"[]]}", r"tensor 'a': '\[' stands where '{'"),
    "twice": (b"{" + GOOD + b"," + GOOD + b"}", r"at byte 65: the header: 'a' is there twice"),
    "twice, escaped": (b"{" + GOOD + b"," + GOOD.replace(b"a", b"\\u0061", 1) + b"}", "'a' is there twice"),
    "field twice": (b'{"a":{"shape":[2],"shape":[2]}}', "tensor 'a': 'shape' is there twice"),
    "field": ({"a": entry(stride=[1])}, "tensor 'a' has the unknown field 'stride'"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, "'a' lacks its dtype, shape or two"),
    "one offset": ({"a": entry(offsets=[8])}, "'a' lacks its dtype, shape or two data_offsets"),
    "three offsets": ({"a": entry(offsets=[0, 8, 8])}, "'a' lacks its dtype, shape or two"),
    "entry of null": ({"a": None}, "tensor 'a': 'n' stands where '{' belongs"),
    "dtype": ({"a": entry("F31")}, "tensor 'a' is of dtype 'F31'; read are F64, F32"),
    "dtype not read": ({"a": entry("F4", [16])}, "tensor 'a' is of dtype 'F4'; read are F64, F32"),
    "dtype of null": ({"a": entry(None)}, "tensor 'a': its dtype: 'n' stands where"),
    "negative": ({"a": entry(shape=[-2])}, "'a': its shape must be a list of whole numbers"),
    "negative zero": (b'{"a":{"shape":[-0]}}', "its shape must be a list of whole"),
    "fraction": ({"a": entry(shape=[2.0])}, "its shape must be a list of whole"),
    "exponent": (b'{"a":{"shape":[1e400]}}', "its shape must be a list of whole"),
    "not a number": (b'{"a":{"shape":[NaN]}}', "its shape must be a list of whole"),
    "true": ({"a": entry(shape=[True])}, "its shape must be a list of whole"),
    "leading zero": (b'{"a":{"shape":[02]}}', "its shape must be a list of whole"),
    "comma": (b'{"a":{"shape":[2,]}}', "its shape must be a list of whole"),
    "digits": (b'{"a":{"shape":[' + b"9" * 5000 + b"]}}", "its shape must be a list of whole"),
    "more digits": (b'{"a":{"shape":[' + b"9" * 200 + b"]}}", r"numbers from 0 to 2\^63 - 1;"),
    "dimensions": ({"a": entry(shape=[1] * 200)}, "its shape must be a list"),
    "size": ({"a": entry(shape=[3])}, r"'a' of shape \[3\] needs 12 bytes, but its data_offsets \[0, 8\] give"),
    "ten billion": ({"a": entry(shape=[TEN_BILLION])}, "needs 40000000000 bytes"),
    "ten billion there": ({"a": entry("U8", [TEN_BILLION], [0, TEN_BILLION])}, r"'a' ends at byte 10000000\d+"),
    "wrapping": ({"a": entry(shape=[2**32, 2**32])}, "is larger than any memory"),
    "nothing, but huge": ({"a": entry(shape=[0, 2**62, 4], offsets=[0, 0])}, "is larger than any memory"),
    "backwards": ({"a": entry(offsets=[8, 0])}, "give it -8"),
    "past the end": ({"a": entry(offsets=[8, 16])}, r"'a' ends at byte \d+, but the file at"),
    "overlap": ({"a": entry(), "b": entry("U8", [1], [7, 8])}, "'a' ends at byte .* they overlap"),
    "same place": ({"a": entry(), "b": entry()}, "'a' ends at byte .*'b' begins .* they overlap"),
    "gap": ({"a": entry("U8", [1], [1, 2])}, "'the header' ends at byte .* they leave a gap"),
    "data too long": ({"a": entry("U8", [7], [0, 7])}, "'the end of the file' begins .* leave a gap"),
    "no tensors": ({}, "'the header' ends .* leave a gap"),
    "metadata": ({"__metadata__": {"a": 1}, "a": entry()}, "__metadata__: 'a': '1' stands where"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', "'__metadata__' is there twice"),
    "metadata, a key twice": (b'{"__metadata__":{"a":"","a":""}}', "__metadata__: 'a' is there twice"),
    "null metadata": ({"__metadata__": None, "a": entry()}, "__metadata__: 'n' stands where '{'"),
    "not UTF-8": (b'{"\xff":1}', "the header: a name is not Unicode text"),
    "half a pair": (b'{"\\ud800":1}', "the header: a name is not Unicode text"),
    "escape": (b'{"\\x":1}', "the header: a name is not Unicode text"),
    "control": (b'{"a\nb":1}', "the header: a name is no text, or does not end"),
    "no end": (b'{"' + b"\\\"" * 50_000, "the header: a name is no text, or does not end"),
    "long name": ({"n" * 5000: entry()}, "no text, or does not end within 4096 bytes"),
    "single quotes": (b"{'a':1}", "the header: a name: \"'\" stands where"),
    "comma at the end": (b"{" + GOOD + b",}", "the header: a name: '}' stands where"),
    "no comma": (b"{" + GOOD + b" " + GOOD + b"}", "the header: '\"' stands where ',' belongs"),
    "two headers": (b"{" + GOOD + b"}{}", "the header goes on after its end"),
    "comment": (b"{/**/" + GOOD + b"}", "'/' stands where"),
    "byte order mark": (b"\xef\xbb\xbf{" + GOOD + b"}", "stands where '{' belongs"),
    "a line break": ({"a\nb": entry("F31")}, r"tensor 'a\\nb' is of dtype"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, case):
    header, says = HOSTILE[case]
    path = tmp_path / "a.safetensors"
    raw = case in ("empty", "nine bytes", "git lfs", "no header", "length", "one too long")
    if raw:
        path.write_bytes(header)
    else:
        build(path, header, EIGHT)
    start = time.process_time()
    with peak_bytes() as peak, pytest.raises(RequestError, match=says) as error:
        SafetensorsFile.open(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 600
    assert peak[0] < 2 * path.stat().st_size + 50_000 and time.process_time() - start < 1


def test_the_hostile_files_differ_from_a_sound_one_only_in_what_is_wrong(tmp_path):
    file = SafetensorsFile.open(build(tmp_path / "a.safetensors", b"{" + GOOD + b"}", EIGHT))
    assert file.load("a").tolist() == [0, 0]


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(9), "y": torch.ones(2, dtype=torch.int8)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.unlink()
        path.write_bytes(whole[:length])
        with pytest.raises(RequestError, match=r"a.safetensors.* again$"):
            SafetensorsFile.open(path)


def test_a_header_of_a_hundred_megabytes_is_refused_unread(tmp_path):
    path = build(tmp_path / "a.safetensors", b"{}", length=100_000_001)
    os.truncate(path, 100_000_009)
    with (
        peak_bytes() as peak,
        pytest.raises(RequestError, match="larger than the 100000000 allowed"),
    ):
        SafetensorsFile.open(path)
    assert peak[0] < 50_000


def test_as_many_tensors_as_allowed_and_one_more(tmp_path):
    nothing = b':{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(b'"%d"%s' % (n, nothing) for n in range(MAX_TENSORS)) + b"}"
    file = SafetensorsFile.open(build(tmp_path / "a.safetensors", header))
    assert len(file.tensors) == MAX_TENSORS and file.load("99999").shape == (0,)
    build(tmp_path / "b.safetensors", header[:-1] + b',"x"' + nothing + b"}")
    with pytest.raises(RequestError, match="more than the 100000 tensors allowed"):
        SafetensorsFile.open(tmp_path / "b.safetensors")


def test_more_metadata_than_anyone_has(tmp_path):
    path = build(tmp_path / "a.safetensors", {"__metadata__": {str(n): "" for n in range(10_001)}})
    with pytest.raises(RequestError, match="__metadata__ has more than the 10000 entries"):
        SafetensorsFile.open(path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(RequestError, match=r"none.safetensors does not exist"):
        SafetensorsFile.open(tmp_path / "none.safetensors")
    with pytest.raises(RequestError, match="is not a file"):
        SafetensorsFile.open(tmp_path)
    path = tmp_path / "a.safetensors"
    save_file({"model.norm.weight": torch.ones(1)}, path)
    with pytest.raises(RequestError, match=r"no tensor 'norm.weight'. Did you mean \"model.norm"):
        SafetensorsFile.open(path).load("norm.weight")


def test_what_the_library_lets_through(tmp_path):
    """Why this reader exists: when the library refuses these, or aligns, reconsider."""
    twice = GOOD + b"," + GOOD.replace(b"F32", b"I32")
    assert load_file(build(tmp_path / "a", b"{" + twice + b"}", EIGHT))["a"].dtype == torch.int32
    assert load_file(build(tmp_path / "b", b"{" + GOOD + b"} ", EIGHT))["a"].data_ptr() % 4
    with (
        safe_open(build(tmp_path / "c", {"a": entry(shape=[0, 2**63], offsets=[0, 0])}), "pt") as c,
        pytest.raises(TypeError),
    ):
        c.get_tensor("a")
