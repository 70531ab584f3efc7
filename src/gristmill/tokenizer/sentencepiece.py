"""SentencePiece's `.model` file, read without its library: a protobuf of pieces and a few switches.

Only what decides the ids is looked at (sentencepiece/src/sentencepiece_model.proto); what `tokenizers` cannot do
exactly is refused. The reader never trusts a length: everything is a slice of the bytes that are there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from gristmill.errors import RequestError
from gristmill.tokenizer.pieces import Entry, Kind, backend_of

_MAX_BYTES = 1 << 28  # the largest known are 17 MB
_UNIGRAM, _BPE = 1, 2
_ALGORITHMS = {_UNIGRAM: "unigram", _BPE: "BPE", 3: "word", 4: "character"}


def read_sentencepiece(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The backend, and the names of its tokens as `tokenizer_config.json` has them.

    BOS goes before a prompt where there is one, as in the families that use such files (Llama, Mistral, Gemma).
    Raises RequestError, naming file and byte or piece, for a damaged file and for models with a normalization
    map, whitespace as suffix, word or character pieces, or unused pieces.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise RequestError(f"{path} is larger than any SentencePiece model ({_MAX_BYTES} bytes)")
    data = path.read_bytes()
    try:
        entries, trainer, normalizer, denormalizer = _model(data)
    except _DamagedError as error:
        hint = ""
        if data[:4].isascii() and b" " in data[:64].split(b"\n")[0]:
            hint = "; it looks like tiktoken's ranks: name it llama3.tiktoken or as its encoding is called"
        raise RequestError(f"{path} is not a SentencePiece model: {error}{hint}") from None
    _refuse(path, entries, trainer, normalizer, denormalizer)
    backend = backend_of(
        entries,
        str(path),
        unigram=_number(trainer, 3, _UNIGRAM) == _UNIGRAM,
        dummy_prefix=bool(_number(normalizer, 3, 1)),
        collapse_spaces=bool(_number(normalizer, 4, 1)),
    )
    control = {entry.text for entry in entries if entry.kind == Kind.CONTROL}
    unknown = next(entry.text for entry in entries if entry.kind == Kind.UNKNOWN)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unknown}
    for key, field, name in (
        ("bos_token", 46, "<s>"),
        ("eos_token", 47, "</s>"),
        ("pad_token", 48, "<pad>"),
    ):
        named = trainer.get(field, name.encode())
        text = named.decode("utf-8", "replace") if isinstance(named, bytes) else name
        if text in control:
            config[key] = text
    return backend, {**config, "add_bos_token": "bos_token" in config, "add_eos_token": False}


def _refuse(
    path: Path,
    entries: list[Entry],
    trainer: dict[int, Any],
    normalizer: dict[int, Any],
    denormalizer: dict[int, Any],
) -> None:
    """RequestError for what no `tokenizers` backend gives the same ids for."""
    algorithm = _number(trainer, 3, _UNIGRAM)
    why = ""
    if algorithm not in (_UNIGRAM, _BPE):
        why = f"its pieces are of the kind {_ALGORITHMS.get(algorithm, algorithm)!r}, not unigram or BPE"
    elif normalizer.get(2):
        name = normalizer.get(1, b"")
        shown = name.decode("utf-8", "replace") if isinstance(name, bytes) else "?"
        why = (
            f"it rewrites text by the map {shown!r}, which tokenizers applies differently "
            '(to "\\r\\n", to half-width kana); train with normalization_rule_name=identity'
        )
    elif denormalizer.get(2):
        why = "it rewrites decoded text by a map"
    elif not _number(normalizer, 5, 1):
        why = "it keeps spaces as they are (escape_whitespaces is off)"
    elif _number(trainer, 24, 0):
        why = "it puts spaces after words (treat_whitespace_as_suffix)"
    else:
        unused = next((entry.text for entry in entries if entry.kind == Kind.UNUSED), None)
        if unused is not None:
            why = f"its piece {unused!r} is marked unused"
        elif any(entry.kind == Kind.BYTE for entry in entries) != bool(_number(trainer, 35, 0)):
            why = "byte_fallback and its byte pieces contradict each other"
    if why:
        raise RequestError(
            f"{path} cannot be read exactly: {why}; or use the model's tokenizer.json, if there is one"
        )


class _DamagedError(Exception):
    """What is wrong with the bytes, and at which."""


def _model(
    data: bytes,
) -> tuple[list[Entry], dict[int, Any], dict[int, Any], dict[int, Any]]:
    entries: list[Entry] = []
    parts: dict[int, dict[int, Any]] = {2: {}, 3: {}, 5: {}}
    for field, value, at in _fields(data, 0, len(data)):
        if field == 1:
            entries.append(_entry(data, value, at, len(entries)))
        elif field in parts:
            if not isinstance(value, range):
                raise _DamagedError(f"byte {at}: field {field} is no message")
            found = {}
            for inner, content, _ in _fields(data, value.start, value.stop):
                found[inner] = (
                    data[content.start : content.stop] if isinstance(content, range) else content
                )
            parts[field].update(found)
    if not entries:
        raise _DamagedError("it holds no pieces")
    return entries, parts[2], parts[3], parts[5]


def _entry(data: bytes, value: Any, at: int, id: int) -> Entry:
    if not isinstance(value, range):
        raise _DamagedError(f"byte {at}: piece {id} is no message")
    text, score, kind = "", 0.0, 1
    for field, content, place in _fields(data, value.start, value.stop):
        if field == 1 and isinstance(content, range):
            try:
                text = data[content.start : content.stop].decode("utf-8")
            except UnicodeDecodeError:
                raise _DamagedError(f"byte {place}: piece {id} is not UTF-8") from None
        elif field == 2 and isinstance(content, float):
            score = content
        elif field == 3 and isinstance(content, int):
            kind = content
        elif field in (1, 2, 3):
            raise _DamagedError(f"byte {place}: field {field} of piece {id} has the wrong type")
    if kind not in list(Kind):
        raise _DamagedError(f"byte {at}: piece {id} is of the unknown type {kind}")
    return Entry(text, score, Kind(kind))


def _fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int | float | range, int]]:
    """Field number, value and place of each: a varint as int, 4 bytes as float, lengths as a range of bytes."""
    at = start
    while at < stop:
        place = at
        key, at = _varint(data, at, stop)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at, stop)
        elif wire == 2:
            length, at = _varint(data, at, stop)
            if length > stop - at:
                raise _DamagedError(
                    f"byte {place}: {length} bytes are announced where {stop - at} are left"
                )
            value, at = range(at, at + length), at + length
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            if size > stop - at:
                raise _DamagedError(f"byte {place}: the file ends inside a number")
            value = struct.unpack_from("<d" if wire == 1 else "<f", data, at)[0]
            at += size
        else:
            raise _DamagedError(f"byte {place}: no field begins with {data[place]:#04x}")
        if not field:
            raise _DamagedError(f"byte {place}: a field has the number 0")
        yield field, value, place


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            raise _DamagedError(f"byte {at}: the file ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _DamagedError(f"byte {at}: a number of more than ten bytes")


def _number(fields: dict[int, Any], field: int, default: int) -> int:
    value = fields.get(field, default)
    return value if isinstance(value, int) else default
