"""A GGUF file's tensors, as the loader of any format wants them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gristmill.formats.gguf import GGMLType, GGUFFile

PLAIN = {GGMLType.F32: torch.float32, GGMLType.F16: torch.float16, GGMLType.BF16: torch.bfloat16}


class GGUFSource:
    """All tensors but those that say how positions are scaled; quantized ones come as float32."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file

    def names(self) -> Iterable[str]:
        return [name for name in self.file.tensors if not name.startswith("rope_")]

    def place(self, name: str) -> str:
        return str(self.file.path)

    def load(self, name: str) -> Tensor:
        info = self.file.tensors[name]
        if info.type in PLAIN:
            raw = torch.from_numpy(self.file.raw(name).reshape(-1))
            return raw.view(PLAIN[info.type]).view(info.shape)
        return torch.from_numpy(self.file.load(name))

    def release(self, name: str) -> None:
        self.file.release(name)
