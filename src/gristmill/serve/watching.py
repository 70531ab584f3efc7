"""From what the engine's thread sees, step by step, to metrics: when each answer was taken up, went on, ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from gristmill.engine import Generation, Stats
from gristmill.lm import Completion
from gristmill.serve.metrics import ModelMetrics


@dataclass(slots=True)
class Times:
    """Of one answer, on `time.monotonic`'s clock. adapter: by the name that requests use; None is the model itself."""

    arrived: float
    metrics: ModelMetrics
    adapter: str | None = None
    began: float | None = None
    first: float | None = None
    last: float | None = None  # token

    def queue_seconds(self) -> float | None:
        return None if self.began is None else self.began - self.arrived

    def first_token_seconds(self) -> float | None:
        return None if self.first is None else self.first - self.arrived


class Watch:
    """Of one engine. `arrived` may be called on any thread, before the engine gets the generation; the others on the
    engine's. of: the metrics by the name of an adapter, those of the model itself by None."""

    def __init__(
        self, of: Callable[[str | None], ModelMetrics], stats: Callable[[], Stats]
    ) -> None:
        self._of, self._stats = of, stats
        self._times: WeakKeyDictionary[Generation, Times] = WeakKeyDictionary()
        self._waiting: dict[Generation, Times] = {}
        self._adapted: dict[Generation, Times] = {}  # waiting or running, with an adapter
        self._computed = 0
        self._step_began = 0.0

    def arrived(self, generation: Generation, at: float, adapter: str | None = None) -> None:
        metrics = self._of(adapter)
        for g in (generation, *generation.siblings):
            self._times[g] = self._waiting[g] = Times(at, metrics, adapter)
            if adapter is not None:
                self._adapted[g] = self._times[g]

    def times(self, generation: Generation) -> Times | None:
        """For the log of its request; also after its end, as long as somebody holds it."""
        return self._times.get(generation)

    def adapters(self) -> tuple[list[str], list[str]]:
        """Those with answers that run, and those with answers that wait. Any thread may ask."""
        alive = [times for g, times in list(self._adapted.items()) if not g.ended]
        running, waiting = (
            sorted({t.adapter for t in alive if t.adapter and (t.began is None) == waits})
            for waits in (False, True)
        )
        return running, waiting

    def step(self, gained: Sequence[tuple[Generation, int]], at: float) -> None:
        """A step ended, in which these gained so many tokens each."""
        for g, times in list(self._waiting.items()):
            if g.cached_tokens is not None or g.output:  # the scheduler has looked at it
                times.began = max(times.arrived, self._step_began)
            elif not g.ended:
                continue
            del self._waiting[g]
        for g in [g for g in list(self._adapted) if g.ended]:
            del self._adapted[g]
        news: dict[ModelMetrics, tuple[int, list[float]]] = {}
        for g, count in gained:
            times = self._times.get(g)
            if times is None or not count:
                continue
            metrics = times.metrics
            total, intervals = news.get(metrics, (0, []))
            if times.first is None or times.last is None:
                times.first = at
                metrics.first(len(g.prompt), g.cached_tokens or 0, at - times.arrived)
            else:
                intervals.append(at - times.last)
            times.last = at
            news[metrics] = total + count, intervals
        for metrics, (total, intervals) in news.items():
            metrics.tokens(total, intervals)
        computed = self._stats().computed
        if computed > self._computed:
            self._of(None).step(computed - self._computed)
            self._computed = computed
        self._step_began = at

    def ended(self, g: Generation, completion: Completion, at: float) -> None:
        self._waiting.pop(g, None)
        times = self._times.get(g)
        if times is None:
            return
        p = g.params
        times.metrics.finished(
            completion, times.arrived, times.began, times.first, at, p.n, p.max_tokens
        )
