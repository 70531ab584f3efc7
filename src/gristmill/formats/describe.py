"""What a model on disk holds, without reading a weight."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.formats.filling import dtype_name
from gristmill.formats.gguf import GGUFFile
from gristmill.formats.hf import read_config
from gristmill.formats.llama2c import Llama2cSource
from gristmill.formats.source import DirectorySource, Source


@dataclass(frozen=True)
class Held:
    """A tensor: row-major shape, type as the format names it, bytes on disk."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int


@dataclass(frozen=True)
class Description:
    """format: "Hugging Face", "GGUF" or "llama2.c". metadata: key -> value; of long lists only the length."""

    format: str
    metadata: dict[str, Any]
    tensors: tuple[Held, ...]


def describe(path: Path) -> Description:
    """Of a model directory or file, as `resolve` gives it. Raises RequestError for what is damaged."""
    if path.is_dir():
        return Description("Hugging Face", read_config(path), _of(DirectorySource(path)))
    if path.suffix != ".gguf":
        return Description("llama2.c", {}, _of(Llama2cSource(path)))
    file = GGUFFile.open(path)
    metadata = {key: _short(value) for key, value in file.metadata.items()}
    tensors = (Held(t.name, t.shape, t.type.name, t.nbytes) for t in file.tensors.values())
    return Description("GGUF", metadata, tuple(tensors))


def _of(source: Source) -> tuple[Held, ...]:
    """Tensors of mapped files: loading one reads nothing."""
    held = []
    for name in source.names():
        tensor = source.load(name)
        held.append(Held(name, tuple(tensor.shape), dtype_name(tensor.dtype), tensor.nbytes))
    return tuple(held)


def _short(value: Any) -> Any:
    if isinstance(value, Sized) and not isinstance(value, str):
        return f"[{len(value)} values]"
    return value
