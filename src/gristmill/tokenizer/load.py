"""Finding and reading a tokenizer on disk, in whichever of the formats it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from gristmill.errors import RequestError
from gristmill.files import read_object
from gristmill.tokenizer.ranks import from_tiktoken, from_vocab_json
from gristmill.tokenizer.sentencepiece import read_sentencepiece
from gristmill.tokenizer.tokenizer import Tokenizer

_WANTED = (
    "tokenizer.json, a SentencePiece tokenizer.model or tiktoken's ranks (cl100k_base.tiktoken)"
)


def load(path: Path) -> Tokenizer:
    """What `Tokenizer.load` does."""
    file = _find(path)
    folder = file.parent
    try:
        if file.suffix == ".tiktoken":
            return from_tiktoken(file)
        config = _config(folder)
        if file.suffix == ".model":
            backend, named = read_sentencepiece(file)
            _add_tokens(backend, config, folder)
            # A class of transformers that builds its own backend would not use this one.
            config = {**named, **config, "tokenizer_class": named["tokenizer_class"]}
        elif file.name == "vocab.json":
            backend = from_vocab_json(file, config)
        else:
            backend = _from_json(file)
        stops = _stops(folder / "generation_config.json")
        try:
            return Tokenizer(backend, config, stops)
        except RequestError as error:
            raise RequestError(f"{file}: {error}") from error
    except OSError as error:
        raise RequestError(f"{error.filename or file} cannot be read: {error.strerror}") from error


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise RequestError(f"no tokenizer at {path}: give a directory with {_WANTED}, or that file")
    for name in ("tokenizer.json", "tokenizer.model", "spiece.model"):
        if (path / name).is_file():
            return path / name
    ranks = sorted(path.glob("*.tiktoken"))
    if len(ranks) > 1:
        raise RequestError(f"{path} holds {ranks[0].name} and {ranks[1].name}: name one of them")
    if ranks:
        return ranks[0]
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return path / "vocab.json"
    raise RequestError(f"{path} holds no tokenizer: tokenizer.json is missing (or {_WANTED[16:]})")


def _from_json(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except (
        BaseException
    ) as error:  # the library raises bare Exception, or panics on what it did not foresee
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise RequestError(f"{file} is not a tokenizer.json: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    config = read_object(folder / "tokenizer_config.json")
    template = folder / "chat_template.jinja"
    if template.is_file():
        try:
            config["chat_template"] = template.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(f"{template} is not UTF-8: byte {error.start}") from None
    return config


def _stops(file: Path) -> list[int]:
    eos = read_object(file).get("eos_token_id")
    stops = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(type(id) is int for id in stops):
        raise RequestError(f"{file}: eos_token_id must be a token id or a list of them")
    return stops


def _add_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any], folder: Path) -> None:
    """Tokens that a model has beyond its SentencePiece file, each at the id its files give."""
    file = folder / "added_tokens.json"
    ids: dict[int, AddedToken] = {}
    for text, id in read_object(file).items():
        if type(id) is not int:
            raise RequestError(f"{file}: the id of {text!r} must be a number")
        ids[id] = AddedToken(text, special=True, normalized=False)
    decoder = config.get("added_tokens_decoder")
    for key, token in decoder.items() if isinstance(decoder, dict) else ():
        if not (
            key.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)
        ):
            raise RequestError(
                f"{folder}: added_tokens_decoder of tokenizer_config.json, key {key!r}"
            )
        special = bool(token.get("special", False))
        ids[int(key)] = AddedToken(token["content"], special=special, normalized=False)
    for id, token in sorted(ids.items()):
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != id:
            raise RequestError(
                f"{folder}: the added token {token.content!r} cannot have the id {id}; the vocabulary "
                f"gives it {backend.token_to_id(token.content)}"
            )
