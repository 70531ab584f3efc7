"""Adapters that requests name. A newer one of a name serves new requests; the older ends with its last."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.adapters import activate, adapters_of, load_adapter, unload_adapter
from gristmill.errors import RequestError
from gristmill.formats import FAMILIES

if TYPE_CHECKING:
    from gristmill.formats import Model


class Residents:
    """`serving` maps the name that requests use to the one that the network knows, which is never used twice."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._used: set[str] = set()
        self.serving: dict[str, str] = {}
        self.retired: set[str] = set()  # still on the network, for those who run with them

    def load(self, name: str, path: str | Path, why_not: Callable[[], str | None]) -> None:
        """`why_not` is asked with the adapter on the network; when it says something, the adapter is refused."""
        network, config = self._model.network, self._model.config
        taken = {*adapters_of(network), *self._used}  # by other engines on this network too
        resident = next(r for n in count() if (r := f"{name}-{n}") not in taken)
        load_adapter(network, path, resident, FAMILIES[config.family].rules(config))
        activate(network, None)  # rows choose; the model alone is the base
        if (reason := why_not()) is not None:
            unload_adapter(network, resident)
            raise RequestError(f"{path}: {reason}")
        self._used.add(resident)
        self._retire(name)
        self.serving[name] = resident

    def unload(self, name: str) -> None:
        if name not in self.serving:
            raise RequestError(f"there is no adapter {name!r}; {self._known()}")
        self._retire(name)

    def resident(self, name: str | None) -> str | None:
        """What the network calls the adapter of a request; None is the base."""
        if name is None:
            return None
        if name not in self.serving:
            raise RequestError(f"there is no adapter {name!r}; {self._known()}")
        return self.serving[name]

    def sweep(self, in_use: set[str]) -> bool:
        """Take retired adapters off the network that nobody runs with; whether there were some."""
        gone = self.retired - in_use
        for resident in gone:
            unload_adapter(self._model.network, resident)
        self.retired -= gone
        return bool(gone)

    def _retire(self, name: str) -> None:
        old = self.serving.pop(name, None)
        if old is not None:
            self.retired.add(old)

    def _known(self) -> str:
        names = ", ".join(self.serving)
        return f"loaded are: {names}" if names else "none is loaded"
