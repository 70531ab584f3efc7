"""What all routes share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from gristmill.machine import resident_memory
from gristmill.retrieval import Index, Searchable
from gristmill.serve.auth import key_of
from gristmill.serve.metrics import Reading
from gristmill.serve.middleware import Operations
from gristmill.serve.models import Models, Served
from gristmill.serve.store import Store
from gristmill.serve.watching import Watch
from gristmill.serve.web import Attachments, passages_for
from gristmill.serve.worker import Post, Worker

if TYPE_CHECKING:
    from gristmill.serve.openai.response_archive import Background


@dataclass
class Server:
    """store: where conversations, votes and responses are kept; None keeps nothing. adapters_by_request: whether
    clients may load them. background: the responses that are made with nobody waiting, by id."""

    models: Models
    operations: Operations = field(default_factory=Operations)
    store: Store | None = None
    adapters_by_request: bool = False
    attachments: Attachments = field(default_factory=Attachments)
    background: dict[str, Background] = field(default_factory=dict)

    @property
    def keys_required(self) -> bool:
        return self.operations.keys is not None

    @property
    def under_way(self) -> int:
        """Answers waiting or running."""
        return sum(worker.under_way for worker in self.workers)

    @property
    def workers(self) -> list[Worker]:
        return list({id(m.worker): m.worker for m in self.models if m.worker is not None}.values())

    def start(self, post: Post) -> None:
        """A thread for every engine."""
        for each in {id(m.engine): m for m in self.models if m.adapter is None}.values():
            worker = Worker(each.engine, post, self._watch(each))
            self.models.start(each.name, worker)
            worker.start()

    def model(self, request: Request, name: str | None) -> Served:
        """The model that a request means. Raises ApiError, 404, for one that its key may not use, too."""
        return self.models.get(name, key_of(request.scope))

    def look_up(self, index: Index | None, attachments: Sequence[str]) -> Searchable:
        """Raises FieldError."""
        return passages_for(index, attachments, self.attachments)

    def stats(self) -> dict[str, Any]:
        """What the app's page of models shows: counters since the start, times of the last minute."""
        metrics = self.operations.metrics
        shown: dict[str, Any] = {}
        for each in self.models:
            if each.adapter is not None:
                continue
            load, stats, of = each.engine.load, each.engine.stats, metrics.model(each.name)
            shown[each.name] = {
                "running": load.running,
                "waiting": load.waiting,
                "cache_usage": load.cache,
                "prefix_hits": stats.prefix_cache_hits,
                "prefix_queries": stats.prefix_cache_queries,
                "prompt_tokens": stats.prefix_cache_queries,
                "generation_tokens": stats.generated,
                "spec_drafted": stats.spec_drafted,
                "spec_accepted": stats.spec_accepted,
                "preemptions": stats.preemptions,
                "ttft_seconds": of.first_token.percentiles(50, 95),
                "inter_token_seconds": of.inter_token.percentiles(50, 95),
            }
        return {"time": time.time(), "models": shown, "memory_bytes": resident_memory()}

    def _watch(self, served: Served) -> Watch:
        engine, metrics = served.engine, self.operations.metrics
        watch = Watch(lambda adapter: metrics.model(adapter or served.name), lambda: engine.stats)

        def reading() -> Reading:
            load = engine.load
            cache = {
                "block_size": str(engine.block_size),
                "num_gpu_blocks": str(engine.cache_tokens // engine.block_size),
                "cache_dtype": engine.cache_dtype,
            }
            lora = {}
            if loaded := engine.adapters:
                running, waiting = watch.adapters()
                lora = {
                    "max_lora": str(len(loaded)),  # all that are loaded may run at once
                    "running_lora_adapters": ",".join(running),
                    "waiting_lora_adapters": ",".join(waiting),
                }
            return Reading(load.running, load.waiting, load.cache, engine.stats, cache, lora)

        metrics.watch(served.name, reading)
        return watch
