"""What `gristmill serve` offers: models and adapters by name, loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.cli.asking import draft_of
from gristmill.cli.console import err
from gristmill.cli.source import OF_RUN, example_questions, model_name, open_index, run_index
from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.formats import Model, resolve
from gristmill.serve import Served

_NAMED = re.compile(r"([^=/\\]+)=(.+)")


@dataclass(frozen=True)
class Offer:
    """A thing at `path`, under `name`."""

    name: str
    path: str

    @classmethod
    def named(cls, given: str) -> Offer:
        """NAME=PATH, or a path that names itself. What exists as it is given is a path."""
        found = None if Path(given).expanduser().exists() else _NAMED.fullmatch(given)
        return cls(*found.groups()) if found else cls(model_name(given), given)


def load(
    offers: Sequence[Offer],
    adapters: Sequence[str],
    *,
    index: str | None,
    rag: bool,
    draft: str | None,
    cache_dtype: Any,
    max_rows: int,
) -> list[Served]:
    """The models, each with its engine, then the adapters. index: of the first one; else a run's own, with rag.

    Raises RequestError before anything is loaded for names that do not go together.
    """
    names = [offer.name for offer in offers]
    on = [_adapter(given, names) for given in adapters]
    every = names + [adapter.name for adapter, _ in on]
    twice = [name for name in every if every.count(name) > 1]
    if twice:
        raise RequestError(
            f"two of them are called {twice[0]!r}; name one otherwise, as in other={offers[0].path}"
        )
    for offer in offers:
        resolve(offer.path)
    drafter = draft_of(draft)  # once: a draft model is loaded by it
    served = []
    for number, offer in enumerate(offers):
        wanted = (
            index if number == 0 and index else OF_RUN if rag and run_index(offer.path) else None
        )
        opened = open_index(offer.path, wanted) if wanted else None
        err.print(f"loading {offer.name} from {offer.path}", style="dim", markup=False)
        engine = Engine(
            Model.load(offer.path),
            cache_dtype=cache_dtype,
            max_rows=max_rows,
            draft=drafter,
        )
        err.print(f"{offer.name}: {engine.describe()}", style="dim", markup=False, soft_wrap=True)
        examples = example_questions(offer.path)
        served.append(Served(offer.name, engine, opened, examples, root=offer.path))
    for adapter, base in on:
        engine = served[names.index(base)].engine
        engine.load_adapter(adapter.name, adapter.path)
        served.append(Served(adapter.name, engine, adapter=adapter.name, root=base))
    return served


def _adapter(given: str, models: Sequence[str]) -> tuple[Offer, str]:
    """The adapter and the name of the model that it is for."""
    found = _NAMED.fullmatch(given)
    if found is None:
        raise RequestError(f"--adapter takes NAME=DIR or NAME=DIR@MODEL, not {given!r}")
    name, path = found.groups()
    path, _, base = (
        path.rpartition("@") if path.rpartition("@")[2] in models else (path, "", models[0])
    )
    if not Path(path).expanduser().is_dir():
        raise RequestError(f"--adapter {given}: there is no directory {path}")
    return Offer(name, path), base
