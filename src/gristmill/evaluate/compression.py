"""What a general-purpose compressor makes of the held-out text, alone and after the training text."""

from __future__ import annotations

import lzma
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

_EXTREME = 9 | lzma.PRESET_EXTREME


@dataclass(frozen=True)
class XzBits:
    alone: int  # bits of `xz -9e` of the held-out text
    with_context: int  # bits of xz(train + held-out) - bits of xz(train)


def xz_bits(train: bytes, heldout: bytes) -> XzBits:
    """Bits for `heldout` alone and with `train` as context.

    Alone: the bytes of `xz -9e` (container and CRC64 included). With context: the same settings, but a
    dictionary large enough to see all of the training text (`xz -9e` stops at 64 MiB), for both
    compressions, so that their difference is the cost of the held-out text. The three compressions run in
    threads: lzma releases the interpreter lock. Speed is about 1 MB/s a core; memory about 12x the text.
    """
    filters = [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": _EXTREME,
            "dict_size": dictionary_size(len(train) + len(heldout)),
        }
    ]
    with ThreadPoolExecutor(3) as threads:
        both = threads.submit(lzma.compress, train + heldout, filters=filters)
        context = threads.submit(lzma.compress, train, filters=filters)
        alone = threads.submit(lzma.compress, heldout, preset=_EXTREME)
        return XzBits(
            alone=8 * len(alone.result()),
            with_context=8 * (len(both.result()) - len(context.result())),
        )


def dictionary_size(length: int) -> int:
    """The smallest dictionary of the sizes that xz writes exactly (2^n, 2^n + 2^(n-1)) that holds `length`.

    At least 1 MiB, at most xz's limit of 1.5 GiB: longer text is seen only that far back.
    """
    size = 1 << 20
    while size < length and size < 1 << 30:
        if size + size // 2 >= length:
            return size + size // 2
        size *= 2
    return size if size >= length else 3 << 29
