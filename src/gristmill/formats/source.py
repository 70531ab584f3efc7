"""Where tensors come from: the files of a Hugging Face directory, whatever they are called."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from torch import Tensor

from gristmill.errors import RequestError
from gristmill.files import read_json
from gristmill.formats.pickles import read_bin
from gristmill.formats.safetensors import SafetensorsFile


class Source(Protocol):
    """Named tensors on disk, read one at a time."""

    def names(self) -> Iterable[str]: ...

    def place(self, name: str) -> str:
        """The file that holds a tensor, for errors; of the whole source for a name it does not hold."""
        ...

    def load(self, name: str) -> Tensor:
        """A tensor of the file's dtype; it may be a view of the mapped file."""
        ...

    def release(self, name: str) -> None:
        """The tensor is not needed any more: memory that its reading took may go."""
        ...


class DirectorySource:
    """A directory's safetensors, or its older .bin files, single or sharded.

    Where no tensor's name begins with `prefix`, all but the head are given under it.

    Raises RequestError, with the file, for one that is missing, damaged or outside the directory.
    """

    def __init__(self, directory: str | Path, prefix: str = "") -> None:
        self.directory = Path(directory)
        self._stored: dict[str, str] = {}  # name as asked for -> name in the file
        self._files: dict[str, SafetensorsFile] = {}  # by tensor
        self._pickled: dict[str, Tensor] = {}
        for file, names in _weight_files(self.directory):
            self._add(file, names)
        names = [*self._files, *self._pickled]
        bare = not any(name.startswith(prefix) for name in names)
        for name in names:
            headed = bare and name not in ("lm_head.weight", "embed_out.weight")
            self._stored[prefix + name if headed else name] = name

    def names(self) -> Iterable[str]:
        return self._stored

    def place(self, name: str) -> str:
        file = self._files.get(self._stored.get(name, ""))
        return str(self.directory if file is None else file.path)

    def load(self, name: str) -> Tensor:
        stored = self._stored[name]
        return (
            self._pickled[stored] if stored in self._pickled else self._files[stored].load(stored)
        )

    def release(self, name: str) -> None:
        stored = self._stored[name]
        if stored in self._files:
            self._files[stored].release(stored)
        else:
            self._pickled.pop(stored, None)

    def _add(self, file: Path, wanted: list[str] | None) -> None:
        """The tensors `wanted` of a file; None: all of them."""
        opened = None if file.suffix == ".bin" else SafetensorsFile.open(file)
        pickled = read_bin(file) if opened is None else {}
        held = pickled if opened is None else opened.tensors
        for name in held if wanted is None else wanted:
            if name not in held:
                raise RequestError(
                    f"{file}: the tensor {name} is missing, which the index puts here"
                )
            if opened is not None:
                self._files[name] = opened
            else:
                self._pickled[name] = pickled[name]


def _weight_files(directory: Path) -> list[tuple[Path, list[str] | None]]:
    """The files of the weights, and which tensors to take from each (None: all)."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        single, index = directory / f"{stem}.{suffix}", directory / f"{stem}.{suffix}.index.json"
        if single.is_file():
            return [(single, None)]
        if index.is_file():
            return [*_shards(directory, index)]
    raise RequestError(f"{directory} holds no weights: model.safetensors is missing")


def _shards(directory: Path, index: Path) -> list[tuple[Path, list[str]]]:
    """The files that an index names, each with its tensors."""
    try:
        weight_map: dict[str, str] = read_json(index)["weight_map"]
        files = sorted(set(weight_map.values()), key=str)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{index} is not an index of weights: {error!r}") from error
    found = []
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise RequestError(f"{index}: a shard must be a file beside it, not {name!r}")
        if not (directory / name).is_file():
            raise RequestError(f"{directory / name} is missing; {index.name} names it")
        found.append((directory / name, [key for key, file in weight_map.items() if file == name]))
    return found
