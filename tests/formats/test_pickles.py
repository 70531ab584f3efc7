"""pytorch_model.bin: what torch.save wrote reads equal; nothing in a pickle runs; what is damaged says so."""

from __future__ import annotations

import os
import pickle
import random
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from gristmill.errors import RequestError
from gristmill.formats.pickles import read_bin


class Code:
    """What its pickle asks the reader to call."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def some_tensors() -> dict[str, torch.Tensor]:
    x = torch.arange(12, dtype=torch.float32)
    return {
        "a": x.view(3, 4),
        "shares": x[2:6],
        "strided": x.view(3, 4).T,
        "half": x.half(),
        "bfloat": x.bfloat16(),
        "ints": x.long(),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_torch_saved(tmp_path, zipped):
    tensors = some_tensors()
    parameter = torch.nn.Parameter(torch.ones(3))
    path = tmp_path / "pytorch_model.bin"
    torch.save({**tensors, "parameter": parameter}, path, _use_new_zipfile_serialization=zipped)
    found = read_bin(path)
    assert list(found) == [*tensors, "parameter"]
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert type(found["parameter"]) is torch.Tensor and not found["parameter"].requires_grad
    found["a"][0, 2] = -1
    assert found["shares"][0] == -1, "saved as one memory, read as one"
    assert read_bin(path)["a"][0, 2] == 2, "the file is as it was"


def test_a_file_is_mapped_not_read(tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"w": torch.zeros(1 << 24)}, path)  # 64 MB

    def own_bytes() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("RssAnon:")[1].split()[0])

    read_bin(path)
    before = own_bytes()
    found = read_bin(path)
    assert found["w"].sum() == 0 and own_bytes() - before < 16e6


@pytest.mark.parametrize("write", ["zip", "old", "pickle"])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, write):
    path, trace = tmp_path / "a.bin", tmp_path / "trace"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Code(trace), protocol=2))
    else:
        torch.save({"w": Code(trace)}, path, _use_new_zipfile_serialization=write == "zip")
    with pytest.raises(
        RequestError, match=r"needs code to be loaded .'posix.mkdir'., which is not run"
    ):
        read_bin(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if write != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists(), "the pickle was harmless: this test proved nothing"


NOT_TENSORS = {
    "module": (torch.nn.Linear(2, 2), "needs code to be loaded .'torch.nn.modules.linear.Linear'"),
    "list": ([torch.ones(1)], "holds a list, not a dictionary"),
    "tensor": (torch.ones(1), "holds a Tensor, not a dictionary"),
    "nested": ({"model": {"w": torch.ones(1)}}, "its entry 'model' is a dict, not a tensor with a name"),
    "number": ({"step": 3}, "its entry 'step' is a int, not a tensor"),
    "numbered": ({1: torch.ones(1)}, "its entry '1' is a Tensor, not a tensor with a name"),
    "sparse": ({"w": torch.eye(3).to_sparse()}, "tensor 'w' is not dense numbers"),
    "meta": ({"w": torch.ones(3, device="meta")}, "tensor 'w' is not dense numbers"),
    "expanded": ({"w": torch.ones(1).expand(10**10)}, r"'w' of shape \[10000000000\] is larger than its file"),
    "line break": ({"a\nb": 3}, r"its entry 'a\\nb' is a int"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_TENSORS)
def test_what_is_no_dictionary_of_tensors(tmp_path, case):
    contents, says = NOT_TENSORS[case]
    path = tmp_path / "a.bin"
    torch.save(contents, path)
    with pytest.raises(RequestError, match=says) as error:
        read_bin(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_at_any_place(tmp_path, zipped):
    path = tmp_path / "a.bin"
    torch.save(some_tensors(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.unlink()
        path.write_bytes(whole[:length])
        # Cut in a name, a pickle of old may seem to ask for some "collections.Ord".
        with pytest.raises(RequestError, match=r"a.bin (is damaged, incomplete or|needs code) .*"):
            read_bin(path)


def test_a_compressed_record_is_refused_unread(tmp_path):
    path, swollen = tmp_path / "a.bin", tmp_path / "b.bin"
    torch.save({"w": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(swollen, "w", zipfile.ZIP_DEFLATED) as out:
        for record in whole.infolist():
            out.writestr(record.filename, whole.read(record))
    with pytest.raises(RequestError, match=r"its record '.*/data.pkl' is compressed"):
        read_bin(swollen)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_read_or_are_refused(tmp_path, zipped):
    path = tmp_path / "a.bin"
    torch.save(some_tensors(), path, _use_new_zipfile_serialization=zipped)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 2, 8])):
            damaged[rng.randrange(len(damaged))] = rng.choice(
                [0, 1, 0x7F, 0xFF, rng.randrange(256)]
            )
        path.unlink()
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read_bin(path)
            except RequestError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert 20 < refused < 490


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(RequestError, match=r"none.bin does not exist"):
        read_bin(tmp_path / "none.bin")
    with pytest.raises(RequestError, match="is not a file"):
        read_bin(tmp_path)
