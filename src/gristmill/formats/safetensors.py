"""A safetensors file, checked whole before anything is made of it, and mapped into memory.

Layout: u64 little-endian length of the header; the header, JSON: name -> dtype, shape, data_offsets (from the
end of the header), and `__metadata__`, string -> string; then the tensors' bytes, without gaps.

Why not `safe_open` (safetensors 0.8, measured): it hands out float32 at odd addresses where the header's length
is odd, takes the last of two tensors of one name, lets a TypeError of torch out for the shape [0, 2^63], needs
10 s and 167 MB to refuse a 15 MB header of empty lists, cannot map a file larger than the machine's memory,
cannot give pages back, and its errors name neither tensor nor byte.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from gristmill.errors import RequestError, nearest
from gristmill.formats.gguf.values import shown
from gristmill.formats.mapped import MappedFile
from gristmill.formats.safetensors_header import TensorInfo, header_length, parse_header


class SafetensorsFile:
    """`SafetensorsFile.open(path)`, then `.tensors`, `.metadata`, `.load(name)`, `.release(name)`.

    The file stays mapped as long as this object or a tensor loaded from it lives. It may be replaced or deleted
    meanwhile, not truncated or written over: the system ends a process that touches a page which is gone.
    """

    def __init__(
        self,
        path: Path,
        mapped: MappedFile,
        metadata: dict[str, str],
        tensors: dict[str, TensorInfo],
    ):
        self.path = path
        self._mapped = mapped
        self.metadata: Mapping[str, str] = MappingProxyType(metadata)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        """Name -> `TensorInfo`, in the header's order."""

    @classmethod
    def open(cls, path: str | Path) -> SafetensorsFile:
        """Map a file and check its whole header against its size. No tensor is read.

        Raises RequestError, one line with the file, the tensor and the byte.
        """
        path = Path(path)
        try:
            if not path.is_file():
                what = "is not a file" if path.exists() else "does not exist"
                raise RequestError(f"{path} {what}; give a .safetensors file")
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                header = file.read(header_length(path, file.read(8), size))
                mapped = MappedFile(file)
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from error
        return cls(path, mapped, *parse_header(path, header, size))

    def load(self, name: str) -> Tensor:
        """A tensor of its shape and the file's dtype, on the CPU.

        Its memory is the mapping's own: nothing is read before it is used, and nothing copied (unless it lies
        unaligned in the file). Writing to it changes this process's copy of a page, never the file; tensors
        of one name share their memory. Raises RequestError for a name that is not there.
        """
        info = self._info(name)
        if not info.nbytes:
            return torch.empty(info.shape, dtype=info.dtype)
        view = self._mapped.view(info.offset, info.nbytes)
        if info.offset % info.dtype.itemsize:
            return (
                torch.frombuffer(view, dtype=torch.uint8).clone().view(info.dtype).view(info.shape)
            )
        return torch.frombuffer(view, dtype=info.dtype).view(info.shape)

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages. The next `load` reads them from the file again.

        For a caller that converts one tensor after another: without this, all it has touched stays resident.
        Does nothing while a tensor from `load(name)`, or a view of one, lives. The pages at its two ends, shared
        with its neighbours, stay.
        """
        info = self._info(name)
        self._mapped.release(info.offset, info.nbytes)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise RequestError(
                f"{self.path} holds no tensor {shown(name)}.{nearest(name, self.tensors)}"
            )
        return self.tensors[name]
