"""llama2.c's tokenizer: ids against sentencepiece with the same scores; hostile files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from gristmill.errors import RequestError
from gristmill.tokenizer import from_llama2c

MODELS = Path(__file__).parents[2].parent / "shared" / "data" / "models"


@pytest.fixture(scope="module")
def file() -> Path:
    path = MODELS / "tok512.bin"
    if not path.is_file():
        pytest.skip(f"tok512.bin is not at {path}")
    return path


def as_sentencepiece(data: bytes) -> sentencepiece.SentencePieceProcessor:
    """The same scores and pieces in SentencePiece's own container."""
    model, at = proto.ModelProto(), 4
    for id in range(512):
        score, length = struct.unpack_from("<fi", data, at)
        text = data[at + 8 : at + 8 + length].decode().strip("\n" if id < 3 else "")
        kind = 2 if id == 0 else 3 if id < 3 else 6 if id < 259 else 1
        model.pieces.add(piece=text.replace(" ", "▁"), score=score, type=kind)
        at += 8 + length
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def test_ids_equal_sentencepiece(file, strings):
    ours, theirs = from_llama2c(file, 512), as_sentencepiece(file.read_bytes())
    texts = [*strings[:1500], "Once upon a time, there was a little girl.", "<s>\n<s>\n<0x41>"]
    for text in texts:
        assert ours.prompt_ids(text) == [1, *theirs.encode(text)], text
        assert ours.decode(ours.encode(text)) == text
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.before) == (512, 1, 2, [1])
    # what the model's own program wrote with this vocabulary
    story = (MODELS / "stories260K-greedy-200.txt").read_text(encoding="utf-8")
    assert ours.decode(ours.encode(story)) == story


@pytest.mark.parametrize(
    ("damage", "vocab_size", "says"),
    [
        (lambda data: data, 511, "bytes follow token 510"),
        (lambda data: data, 513, "the file ends before token 512 of 513"),
        (lambda data: data, 10**12, "1000000000000 tokens do not fit"),
        (lambda data: data, 3, "3 tokens do not fit"),
        (lambda data: data[:-1], 512, "token 511 claims"),
        (lambda data: b"", 512, "do not fit a file of 0 bytes"),
        (lambda data: data[:8] + struct.pack("<i", 2**31 - 1) + data[12:], 512, "token 0 claims 2147483647"),
        (lambda data: data[:8] + struct.pack("<i", -1) + data[12:], 512, "token 0 claims -1"),
        (lambda data: data.replace(b"<0x05>", b"<0x04>"), 512, "token 8 is '<0x04>'"),
        (lambda data: data.replace(b" the", b"\xff the"[:4]), 512, "is not UTF-8"),
    ],
)  # fmt: skip
def test_damaged_files_are_one_clear_line(file, tmp_path, damage, vocab_size, says):
    path = tmp_path / "tok.bin"
    path.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RequestError, match=says) as raised:
        from_llama2c(path, vocab_size)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        from_llama2c(tmp_path / "nowhere.bin", 512)
