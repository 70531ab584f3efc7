"""From one format to another, with proof that the copy says what the original says."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gristmill.errors import RequestError, WorkError
from gristmill.formats.describe import describe
from gristmill.formats.gguf.mixtures import mixture_name
from gristmill.formats.gguf_models import plain_type
from gristmill.formats.model import Model
from gristmill.formats.parity import KNOWN_ERROR, Parity, compare, sample


@dataclass(frozen=True)
class Conversion:
    """kind: the copy's weights, as GGUF names them. bound: the mean KL that they may cost. types: how many tensors
    have which type; a kind falls back to others where rows are not whole blocks of 256."""

    source: Path
    target: Path
    format: str
    kind: str
    parity: Parity
    bound: float
    bytes: int
    types: dict[str, int]


def convert(
    source: str | Path,
    target: str | Path,
    *,
    quant: str = "auto",
    dtype: str = "auto",
    force: bool = False,
) -> Conversion:
    """Write `source` (any model) as `target`: a .gguf file, or else a Hugging Face directory.

    `quant` is a GGUF file's type, `dtype` that of the weights read ("auto": as they are stored). The copy is
    loaded again and compared on a probe text before it takes its name. Raises RequestError for what cannot be
    converted or is there already, and WorkError when the copy differs by more than its kind of weights explains
    (kept nevertheless with `force`).
    """
    target = Path(target).expanduser()
    format = "gguf" if target.suffix == ".gguf" else "hf"
    if target.exists():
        raise RequestError(f"{target} is there already; remove it or name another place")
    if format == "hf" and quant != "auto":
        raise RequestError(f"{quant} is a type of GGUF file; name the target something.gguf for it")
    # A typo is refused before weights are read.
    kind = "" if quant == "auto" else mixture_name(quant)
    original = Model.load(source, dtype=dtype, widen=True)
    assert original.path is not None
    kind = kind or plain_type(original.network)
    before = sample(original)
    partial = target.with_name(f".partial-{target.name}")  # the suffix says the format
    _remove(partial)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        original.save(partial, format, quant=kind if format == "gguf" else "auto")
        place = original.path
        del original
        copy = Model.load(partial, dtype="auto", widen=True)
        parity = compare(before, sample(copy, before.ids))
        del copy
        bound = KNOWN_ERROR[kind]
        problem = _problem(parity, kind, bound)
        if problem and not force:
            raise WorkError(f"{target} was not written: {problem}. --force keeps it nevertheless")
        partial.rename(target)
    finally:
        _remove(partial)
    types = dict(Counter(tensor.type for tensor in describe(target).tensors).most_common())
    return Conversion(place, target, format, kind, parity, bound, _size(target), types)


def _problem(parity: Parity, kind: str, bound: float) -> str:
    if not parity.same_ids:
        return "its tokenizer reads the probe text as other tokens"
    if not parity.same_chat:
        return "its chat template or the tokens that end a turn differ"
    if not parity.kl <= bound:  # also when it is not a number
        return (
            f"it differs from the original by a mean KL divergence of {parity.kl:.2g} nats a token, and {kind} "
            f"costs at most {bound:g}"
        )
    return ""


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
