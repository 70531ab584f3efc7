"""The models that a server offers, by name."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from gristmill.engine import Engine
from gristmill.errors import RequestError, nearest
from gristmill.retrieval import Index
from gristmill.serve.errors import ApiError
from gristmill.serve.keys import Key
from gristmill.serve.parsing import Format, Tool, detect
from gristmill.serve.prompts import Prompt, make_prompt
from gristmill.serve.worker import Worker


@dataclass(frozen=True)
class Served:
    """A model, or an adapter on it, by the name that requests use.

    index: answers may be looked up in it. examples: questions that the app suggests. worker: who runs the engine;
    without one the model is only described.
    """

    name: str
    engine: Engine
    index: Index | None = None
    examples: tuple[str, ...] = ()
    adapter: str | None = None
    root: str = ""  # where the weights came from
    worker: Worker | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def template(self) -> str | None:
        try:
            return self.engine.tokenizer.chat_template
        except RequestError:  # a base model
            return None

    @cached_property
    def format(self) -> Format:
        """How it writes its thoughts and its calls of tools."""
        tokenizer = self.engine.tokenizer
        return detect(self.template, tokenizer.special_tokens, tokenizer.is_special)

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] = (),
        variables: Mapping[str, Any] | None = None,
        continued: bool = False,
    ) -> Prompt:
        """See `make_prompt`."""
        return make_prompt(
            self.engine.tokenizer, self.format, messages, tools, variables, continued
        )

    @property
    def context(self) -> int:
        return self.engine.context

    @property
    def running(self) -> Worker:
        assert self.worker is not None
        return self.worker


class Models:
    """Those of a server. The first is the one that a request without a name means."""

    def __init__(self, served: Iterable[Served]) -> None:
        """Raises RequestError for a name that is there twice."""
        self._by_name: dict[str, Served] = {}
        for each in served:
            self.add(each)

    def add(self, served: Served) -> None:
        if served.name in self._by_name:
            raise RequestError(
                f"two models are called {served.name!r}; name one of them otherwise, as in NAME=PATH"
            )
        self._by_name[served.name] = served

    def start(self, name: str, worker: Worker) -> None:
        """`worker` runs this model, and what rests on its engine."""
        engine = self._by_name[name].engine
        for each in list(self):
            if each.engine is engine:
                self._by_name[each.name] = replace(each, worker=worker)

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._by_name.values()))

    def usable(self, key: Key | None) -> dict[str, Served]:
        """What `key` may use, by name; without keys, all."""
        return {m.name: m for m in self if key is None or key.may_use(m.name)}

    def get(self, name: str | None, key: Key | None = None) -> Served:
        """That of the name, or the first. Raises ApiError, 404: to whoever may not use a model it is not there."""
        usable = self.usable(key)
        wanted = next(iter(usable), "") if name is None else name
        if wanted not in usable:
            who = "this server has" if key is None else "this key may use"
            have = ", ".join(repr(n) for n in list(usable)[:10]) or "none"
            raise ApiError(
                404,
                f"there is no model {wanted!r:.80} here; {who} {have}.{nearest(wanted, usable)}",
                param="model",
                code="model_not_found",
            )
        return usable[wanted]

    def load_adapter(self, name: str, path: str, base: str | None, in_place: bool) -> None:
        """Serve the PEFT adapter at `path` as `name`. Raises RequestError where the name is taken (unless in_place,
        and it is an adapter of the same model), and what the engine raises. Computes: not for an event loop."""
        on = self.get(base)
        there = self._by_name.get(name)
        if there is not None and not (in_place and there.adapter and there.engine is on.engine):
            raise RequestError(f"{name!r} is served already; unload it first, or say load_inplace")
        on.engine.load_adapter(name, path)
        made = replace(on, name=name, adapter=name, examples=(), created=int(time.time()))
        self._by_name[name] = made

    def unload_adapter(self, name: str) -> None:
        """Raises ApiError, 404, for a name that is none of an adapter."""
        there = self.get(name)
        if there.adapter is None:
            raise RequestError(f"{name!r} is a model, not an adapter, and stays")
        there.engine.unload_adapter(name)
        del self._by_name[name]
