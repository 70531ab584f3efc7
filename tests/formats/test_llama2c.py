"""The 260K-parameter story model, real weights from elsewhere: its known story from every format, bad files refused."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
import torch

from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.formats import Model, convert, load_config
from gristmill.lm import Request, SamplingParams
from tests.llama_cpp import running

MODELS = Path("../shared/data/models")
STORY = (MODELS / "stories260K-greedy-200.txt").read_text(encoding="utf-8").rstrip("\n")


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stories")
    checkpoint = MODELS / "stories260K.bin"
    convert(checkpoint, root / "hf")
    convert(root / "hf", root / "f32.gguf", quant="F32")
    convert(root / "f32.gguf", root / "again")
    return {
        "llama2c": checkpoint,
        "hf": root / "hf",
        "gguf": root / "f32.gguf",
        "hf from gguf": root / "again",
    }


def test_the_known_story_token_for_token(copies):
    """run.c's greedy output: BOS and 200 steps, so 199 new tokens... of which the text is given in the data."""
    ids = None
    for name, path in copies.items():
        model = Model.load(path)
        done = Engine(model).generate(
            [Request("", SamplingParams(max_tokens=200, temperature=0.0))]
        )[0]
        assert done.text.strip() == STORY.strip(), name
        ids = ids or done.token_ids
        assert done.token_ids == ids, name


def test_llama_cpp_tells_the_same_story(copies):
    with running(copies["gguf"], 512) as llama:
        told = llama.continues([1], 200)
    assert told.strip() == STORY.strip()


def test_transformers_tells_the_same_story(copies):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(copies["hf"])
    tokenizer = AutoTokenizer.from_pretrained(copies["hf"])
    given = tokenizer("", return_tensors="pt")
    assert given["input_ids"].tolist() == [[1]]
    ids = model.generate(**given, max_new_tokens=200, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == STORY.strip()


def test_every_copy_has_the_same_weights(copies):
    first = Model.load(copies["llama2c"]).network.state_dict()
    for path in list(copies.values())[1:]:
        for name, tensor in Model.load(path).network.state_dict().items():
            assert torch.equal(tensor, first[name]), (path, name)


HEADER = (64, 172, 5, 8, 4, 512, 512)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (HEADER[:3], "too short"),
        ((64, 172, 5, 7, 4, 512, 512), "not a llama2.c checkpoint"),
        ((-64, 172, 5, 8, 4, 512, 512), "not a llama2.c checkpoint"),
        (
            (2**31 - 4, 2**31 - 1, 9999, 2, 1, 2**31 - 1, 2**31 - 1),
            "not a whole llama2.c checkpoint",
        ),
        (HEADER, "not a whole llama2.c checkpoint"),
        ((64, 172, 5, 8, 4, -512, 512), "not a whole llama2.c checkpoint"),
    ],
)
def test_files_that_are_none(tmp_path, header, says):
    path = tmp_path / "model.bin"
    path.write_bytes(
        struct.pack(f"<{len(header)}i", *header) + bytes(1000 if len(header) == 7 else 0)
    )
    with pytest.raises(RequestError, match=says):
        load_config(path)


def test_a_checkpoint_needs_its_tokenizer(tmp_path):
    shutil.copy(MODELS / "stories260K.bin", tmp_path)
    with pytest.raises(
        RequestError, match=r"needs its tokenizer beside it: tok512\.bin or tokenizer\.bin"
    ):
        Model.load(tmp_path / "stories260K.bin")
    shutil.copy(MODELS / "tok512.bin", tmp_path / "tokenizer.bin")
    assert Model.load(tmp_path / "stories260K.bin").config.vocab_size == 512


def test_not_a_number_in_the_weights(tmp_path):
    data = bytearray((MODELS / "stories260K.bin").read_bytes())
    data[28:32] = struct.pack("<f", float("nan"))
    (tmp_path / "m.bin").write_bytes(data)
    shutil.copy(MODELS / "tok512.bin", tmp_path)
    with pytest.raises(RequestError, match=r"m\.bin: the tensor tok_embeddings holds NaN"):
        Model.load(tmp_path / "m.bin")
