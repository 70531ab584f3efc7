"""Token shards looked over before the first step: what would end a run hours later, or spoil it without a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from gristmill.errors import RequestError
from gristmill.files import read_json
from gristmill.tokenizer import Tokenizer
from gristmill.train.windows import Windows

_EPOCHS = 4.0
_AT_ONCE = 1 << 22  # tokens


def look_over(
    inputs: Mapping[str, Path],
    context: int,
    weights: Mapping[str, float],
    tokens: int,
    vocab_size: int | None = None,
) -> list[str]:
    """`check` and `inspect` of what pretraining is given: inputs are tokens and tokenizer.

    vocab_size: of the embedding; None: the tokenizer's.
    """
    directory, tokenizer = inputs["tokens"], Tokenizer.load(inputs["tokenizer"])
    check(directory)
    vocab_size = vocab_size or tokenizer.vocab_size
    start = next(iter(tokenizer.document_start), None)
    windows = Windows(directory, "train", context, weights, 0)
    said = inspect(windows, vocab_size, start, tokens)
    try:
        heldout = Windows(directory, "heldout", context, {}, 0)
    except RequestError:  # a small folder may hold out less than one window
        return said
    inspect(heldout, vocab_size, start, 0)
    return said


def check(tokens_dir: Path) -> None:
    """Raises RequestError where a shard is not what the manifest says: missing, truncated, of another type or size.

    Reads headers only.
    """
    manifest = read_json(tokens_dir / "manifest.json")
    for split, groups in manifest["splits"].items():
        for group, entry in groups.items():
            path = tokens_dir / f"{split}.{group}.npy"
            again = "Encode the corpus again (the tokens stage), or copy the file again"
            try:
                tokens = np.load(path, mmap_mode="r")
            except FileNotFoundError:
                raise RequestError(
                    f"{path} is not there, and {tokens_dir}/manifest.json lists it. {again}"
                ) from None
            except (ValueError, EOFError, OSError) as error:
                raise RequestError(f"{path} is truncated or damaged ({error}). {again}") from error
            if tokens.ndim != 1 or tokens.dtype.name != manifest["dtype"]:
                raise RequestError(
                    f"{path} holds {tokens.dtype.name}{list(tokens.shape)}, where the manifest says one row of "
                    f"{manifest['dtype']}. {again}"
                )
            if len(tokens) != entry["tokens"]:
                raise RequestError(
                    f"{path} holds {len(tokens):,} tokens, and the manifest says {entry['tokens']:,}. {again}"
                )


def inspect(
    windows: Windows, vocab_size: int, document_start: int | None, tokens: int
) -> list[str]:
    """What is odd about the shards that `tokens` tokens will be read from, in words; [] when nothing is.

    Reads every token once. Raises RequestError for an id that the embedding, of `vocab_size` rows, does not have.
    document_start: the id that documents begin with, None where there is none.
    """
    said = []
    for group, held, weight in zip(windows.groups, windows.tokens, windows.weights, strict=True):
        highest, doubled, equal = 0, 0, 0
        for piece in _pieces(held, windows.length):
            highest = max(highest, int(piece.max()))
            if highest >= vocab_size:
                raise RequestError(
                    f'group "{group}" holds the token {highest}, and the vocabulary has {vocab_size}: it was '
                    "encoded with another tokenizer. Run the tokens stage with this one"
                )
            if document_start is not None:
                starts = piece == document_start
                doubled += int((starts[1:] & starts[:-1]).sum())
            whole = (len(piece) - 1) // windows.length * windows.length
            rows = piece[:whole].reshape(-1, windows.length)
            equal += int((rows == rows[:, :1]).all(1).sum())
        if doubled:
            said.append(
                f'group "{group}": {doubled:,} times a document starts right where another does: the mark was '
                "added twice, or there are empty documents"
            )
        if equal:
            said.append(
                f'group "{group}": {equal:,} windows of {windows.length} tokens are one token over and over'
            )
        epochs = tokens * weight / sum(windows.weights) / len(held)
        if epochs > _EPOCHS:
            said.append(
                f'group "{group}" is read {epochs:.1f} times over; after about {_EPOCHS:.0f} a repeated token '
                "teaches little (Muennighoff et al. 2023). More data, fewer tokens, or a lower weight"
            )
    return said


def _pieces(tokens: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Whole windows at a time, and the token after them, which the next piece begins with."""
    step = max(1, _AT_ONCE // length) * length
    for start in range(0, len(tokens), step):
        yield tokens[start : start + step + 1]
