"""llama2.c's `tokenizer.bin`: a SentencePiece BPE of scores and bytes (github.com/karpathy/llama2.c, run.c)."""

from __future__ import annotations

import struct
from pathlib import Path

from gristmill.errors import RequestError
from gristmill.tokenizer.pieces import SPACE, Entry, Kind, backend_of
from gristmill.tokenizer.tokenizer import Tokenizer

_HEADER, _ENTRY = struct.Struct("<i"), struct.Struct("<fi")
# Where its exporter writes "\n<s>\n" and "\n</s>\n" for the two, and how SentencePiece calls them.
_FIRST = ("<unk>", "<s>", "</s>")


def from_llama2c(path: str | Path, vocab_size: int) -> Tokenizer:
    """The tokenizer beside a llama2.c checkpoint; the file does not say how many tokens it has.

    Layout: int32 longest token, then per token float32 score, int32 length, that many bytes. Ids 0 to 2 are
    unknown, BOS and EOS, then come the 256 bytes. Raises RequestError, naming file and token.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    if not len(_FIRST) + 256 <= vocab_size <= len(data) // _ENTRY.size:
        raise RequestError(f"{path}: {vocab_size} tokens do not fit a file of {len(data)} bytes")
    longest, at = _HEADER.unpack_from(data)[0], _HEADER.size
    entries = []
    for id in range(vocab_size):
        if len(data) - at < _ENTRY.size:
            raise RequestError(f"{path}: the file ends before token {id} of {vocab_size}")
        score, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        if not 0 <= length <= min(longest, len(data) - at):
            raise RequestError(
                f"{path}: token {id} claims {length} bytes; the longest is {longest}, and "
                f"{len(data) - at} are left"
            )
        entries.append(_entry(path, id, score, data[at : at + length]))
        at += length
    if at != len(data):
        raise RequestError(f"{path}: {len(data) - at} bytes follow token {vocab_size - 1}")
    config = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    return Tokenizer(
        backend_of(entries, str(path)), {**config, "add_bos_token": True, "add_eos_token": False}
    )


def _entry(path: Path, id: int, score: float, content: bytes) -> Entry:
    if id < len(_FIRST):
        return Entry(_FIRST[id], score, Kind.UNKNOWN if id == 0 else Kind.CONTROL)
    try:
        text = content.decode("utf-8").replace(" ", SPACE)
    except UnicodeDecodeError:
        raise RequestError(f"{path}: token {id} is not UTF-8") from None
    byte = id - len(_FIRST)
    if byte < 256:
        if text != f"<0x{byte:02X}>":
            raise RequestError(f"{path}: token {id} is {text!r} where <0x{byte:02X}> belongs")
        return Entry(text, score, Kind.BYTE)
    return Entry(text, score, Kind.NORMAL)
