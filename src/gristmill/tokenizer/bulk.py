"""Encoding many megabytes: `gigatoken` where it is installed and proves to give the same ids.

`tokenizers` defines the ids; at about 1.4 MB/s a core it is too slow for a corpus. gigatoken reads the same
`tokenizer.json` and encodes above 100 MB/s, for the split patterns it knows by name. It is used only after
it gave equal ids on the probes below, and it is compared again on a sample of every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gristmill.errors import WorkError
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.tokenizer.unicode import check_unicode

_PROBES = (
    "",
    "Hello, world! It's 12345 o'clock; we'LL see \u017f'\u017f.",
    "def f(x: int) -> str:\n\treturn f'{x!r:>10}'  # \u00e9\u00e8 na\u00efve\r\n\r\n\n  \n   end  ",
    "   leading\n\n\n  \ttabs\t \n trailing \n \t",
    "\u4f60\u597d\uff0c\u4e16\u754c 123\u00bd\u0664\u0665\u0666\u0667 e\u0301\u0327 \u202eabc\u2066",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\x00\x01\x7f\u0080\u00a0\u2003\u2028\ufeff\ufffd\U0010ffff\ue000",
    "a" * 300 + "=" * 300 + " " * 300 + "\n" * 300 + "9" * 10,
    "<|endoftext|><|im_start|>user\n<|im_end|></s>[INST]<think>",
)
_CHECK_EVERY = 64


class BulkEncoder:
    """Ids of many texts at once. `fast` says which way it goes; `allow_fast=False` keeps to `tokenizers`."""

    def __init__(self, tokenizer: Tokenizer, allow_fast: bool = True) -> None:
        self._tokenizer = tokenizer
        self._fast = _gigatoken(tokenizer) if allow_fast else None

    @property
    def fast(self) -> bool:
        return self._fast is not None

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """All ids, one text after another (uint32), and how many each text has (int64)."""
        texts = [check_unicode(text) for text in texts]
        if self._fast is None or not texts:
            lists = self._tokenizer.encode_batch(texts)
            lengths = np.array([len(ids) for ids in lists], dtype=np.int64)
            flat = np.fromiter((id for ids in lists for id in ids), np.uint32, int(lengths.sum()))
            return flat, lengths
        array = self._fast.encode_batch(texts)
        flat = np.asarray(array.layout.content.data, dtype=np.uint32)
        bounds = np.asarray(array.layout.offsets.data, dtype=np.int64)
        flat, lengths = flat[bounds[0] : bounds[-1]], np.diff(bounds)
        starts = bounds - bounds[0]
        for index in range(0, len(texts), _CHECK_EVERY):
            if flat[starts[index] : starts[index + 1]].tolist() != self._tokenizer.encode(
                texts[index]
            ):
                raise WorkError(
                    f"gigatoken gave other ids than tokenizers for text {index}; "
                    "uninstall gigatoken and run again"
                )
        return flat, lengths


def _gigatoken(tokenizer: Tokenizer) -> Any:
    """A gigatoken tokenizer that passed the probes, or None."""
    try:
        import gigatoken
    except ImportError:
        return None
    try:
        fast = gigatoken.Tokenizer.from_json(tokenizer.plain.to_str())
        passed = all(fast.encode(p).tolist() == tokenizer.encode(p) for p in _PROBES)
    except Exception:  # it refuses vocabularies and split patterns that it does not know
        return None
    return fast if passed else None
