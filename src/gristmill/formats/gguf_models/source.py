"""A GGUF file's tensors, as the loader of any format wants them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from gristmill.formats.gguf import GGMLType, GGUFFile, dequantize

PLAIN = {GGMLType.F32: torch.float32, GGMLType.F16: torch.float16, GGMLType.BF16: torch.bfloat16}


_SLAB = 1 << 20  # elements widened at once


class GGUFSource:
    """All tensors but those that say how positions are scaled and those `without`; quantized ones come as `dtype`."""

    def __init__(self, file: GGUFFile, dtype: torch.dtype, without: Collection[str] = ()) -> None:
        self.file, self.dtype, self._without = file, dtype, without

    def names(self) -> Iterable[str]:
        names = [name for name in self.file.tensors if not name.startswith("rope_")]
        return [name for name in names if name not in self._without]

    def place(self, name: str) -> str:
        return str(self.file.path)

    def load(self, name: str) -> Tensor:
        info = self.file.tensors[name]
        if info.type in PLAIN:
            raw = torch.from_numpy(self.file.raw(name).reshape(-1))
            return raw.view(PLAIN[info.type]).view(info.shape)
        # In slabs: the whole as float32 would be several times what is kept of it.
        raw = self.file.raw(name)
        rows = raw.reshape(-1, raw.shape[-1])
        out = torch.empty(len(rows), info.shape[-1], dtype=self.dtype)
        step = max(1, _SLAB // info.shape[-1])
        for start in range(0, len(rows), step):
            slab = dequantize(rows[start : start + step], info.type)
            out[start : start + step] = torch.from_numpy(slab)
        return out.view(info.shape)

    def release(self, name: str) -> None:
        self.file.release(name)
