"""What Prometheus scrapes, and the figures of the app's live page.

Names, labels and buckets are vLLM's, and so is the prefix by default, `vllm:`: dashboards (vLLM's own for Grafana) and
routers and autoscalers (the Gateway API's inference extension, KEDA rules on `vllm:num_requests_waiting`) have these
names written into them, and under another prefix none of them would see us. `gristmill:` is there for whoever scrapes
both. The one label is `model_name`, a model's or an adapter's; never who asked.

vLLM says token and request where Prometheus appends: `vllm:prompt_tokens` is exposed as `vllm:prompt_tokens_total`.
Times are in seconds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from gristmill.engine import Stats
from gristmill.lm import Completion

PREFIX = "vllm:"
_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_BETWEEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
_WHOLE = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
_COUNTS = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))
_STEP = tuple(2**power for power in (0, *range(3, 15)))
_HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": ("From arrival to the first token.", _FIRST),
    "inter_token_latency_seconds": ("Between a request's steps that gave tokens.", _BETWEEN),
    "time_per_output_token_seconds": ("A request's mean between its tokens.", _BETWEEN),
    "e2e_request_latency_seconds": ("From arrival to the end.", _WHOLE),
    "request_queue_time_seconds": ("From arrival until the engine began.", _WHOLE),
    "request_prefill_time_seconds": ("From then to the first token.", _WHOLE),
    "request_decode_time_seconds": ("From the first token to the end.", _WHOLE),
    "request_inference_time_seconds": ("From where the engine began to the end.", _WHOLE),
    "request_prompt_tokens": ("Of prompts.", _COUNTS),
    "request_generation_tokens": ("Of answers.", _COUNTS),
    "request_params_n": ("Answers asked for.", (1, 2, 5, 10, 20)),
    "request_params_max_tokens": ("Tokens asked for.", _COUNTS),
    "iteration_tokens_total": ("Computed in a step of the engine.", _STEP),
}


@dataclass(frozen=True)
class Reading:
    """An engine at one moment. cache_usage: 0 to 1. cache, lora: labels of cache_config_info, such as num_gpu_blocks,
    and of lora_requests_info; where there are none, that one is not shown."""

    running: int
    waiting: int
    cache_usage: float
    stats: Stats
    cache: Mapping[str, str] = field(default_factory=dict)
    lora: Mapping[str, str] = field(default_factory=dict)


Read = Callable[[], Reading]


class Metrics:
    """Those of one app, in a registry of its own.

    `readings` are asked for when somebody scrapes, by the name of an engine's model; nothing is counted twice.
    """

    def __init__(self, prefix: str = PREFIX, clock: Callable[[], float] = time.monotonic) -> None:
        self._prefix, self._clock = prefix, clock
        self.registry = CollectorRegistry()
        self._readings: dict[str, Read] = {}
        self._models: dict[str, ModelMetrics] = {}
        self._histograms = {
            name: Histogram(prefix + name, told, ["model_name"], buckets=b, registry=self.registry)
            for name, (told, b) in _HISTOGRAMS.items()
        }
        labels = ["model_name", "finished_reason"]
        self._ended = Counter(
            prefix + "request_success", "Answers by how they ended.", labels, registry=self.registry
        )
        self._prompt, self._generated, self._cached = (
            Counter(prefix + name, told, ["model_name"], registry=self.registry)
            for name, told in (
                ("prompt_tokens", "Of prompts whose first token came."),
                ("generation_tokens", "Generated."),
                ("prompt_tokens_cached", "Of prompts, found in the cache."),
            )
        )
        self.registry.register(_Readings(prefix, self._readings))
        ProcessCollector(registry=self.registry)

    def watch(self, model: str, read: Read) -> None:
        """Show the engine that `read` looks at under the name `model`."""
        self._readings[model] = read

    def model(self, name: str) -> ModelMetrics:
        """Those of a model or adapter, the same object for the same name."""
        if name in self._models:
            return self._models[name]
        made = ModelMetrics(
            {key: h.labels(name) for key, h in self._histograms.items()},
            {r: self._ended.labels(name, r) for r in ("stop", "length", "abort", "error")},
            self._prompt.labels(name),
            self._generated.labels(name),
            self._cached.labels(name),
            self._clock,
        )
        return self._models.setdefault(name, made)  # two threads may have come this far

    def forget(self, name: str) -> None:
        """An adapter was unloaded: its series would stay for ever."""
        self._readings.pop(name, None)
        if self._models.pop(name, None) is None:
            return
        for metric in (*self._histograms.values(), self._prompt, self._generated, self._cached):
            metric.remove(name)
        self._ended.remove_by_labels({"model_name": name})

    def exposition(self) -> tuple[bytes, str]:
        """What /metrics answers, and its content type. Always Prometheus's text format, which every scraper takes:
        as OpenMetrics prometheus_client 0.26 writes vllm_ for vllm: unless the scraper asks for UTF-8 names."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4


class ModelMetrics:
    """What happens with one model. Any thread may call; a call costs a few microseconds, and looks no label up."""

    def __init__(
        self,
        histograms: Mapping[str, Histogram],
        ended: Mapping[str, Counter],
        prompt: Counter,
        generated: Counter,
        cached: Counter,
        clock: Callable[[], float],
    ) -> None:
        self._observe = {name: histogram.observe for name, histogram in histograms.items()}
        self._ended, self._prompt, self._generated, self._cached = ended, prompt, generated, cached
        self.first_token, self.inter_token = Recent(clock), Recent(clock)

    def first(self, prompt_tokens: int, cached_tokens: int, seconds: float) -> None:
        """An answer's first token came, so long after its request."""
        self._prompt.inc(prompt_tokens)
        self._cached.inc(cached_tokens)
        self._observe["time_to_first_token_seconds"](seconds)
        self.first_token.add([seconds])

    def tokens(self, count: int, intervals: Sequence[float]) -> None:
        """A step gave `count` tokens; intervals: for each answer but those that began with it, since its last."""
        self._generated.inc(count)
        observe = self._observe["inter_token_latency_seconds"]
        for seconds in intervals:
            observe(seconds)
        self.inter_token.add(intervals)

    def step(self, computed: int) -> None:
        """The engine computed so many tokens in one step."""
        self._observe["iteration_tokens_total"](computed)

    def finished(
        self,
        completion: Completion,
        arrived: float,
        began: float | None,
        first: float | None,
        ended: float,
        n: int = 1,
        max_tokens: int | None = None,
    ) -> None:
        """An answer ended. began: when the engine took it up, None where it never did; first: when its first token
        came, None where none did."""
        self._ended[completion.finish_reason].inc()
        observe, generated = self._observe, len(completion.token_ids)
        observe["e2e_request_latency_seconds"](ended - arrived)
        observe["request_prompt_tokens"](completion.prompt_tokens)
        observe["request_generation_tokens"](generated)
        observe["request_params_n"](n)
        if max_tokens is not None:
            observe["request_params_max_tokens"](max_tokens)
        if began is not None:
            observe["request_queue_time_seconds"](began - arrived)
            observe["request_inference_time_seconds"](ended - began)
        if first is not None:
            observe["request_decode_time_seconds"](ended - first)
            if began is not None:
                observe["request_prefill_time_seconds"](first - began)
            if generated > 1:
                observe["time_per_output_token_seconds"]((ended - first) / (generated - 1))


class Recent:
    """Values of the last `seconds`, and of these at most the latest `most`."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, seconds: float = 60, most: int = 8192
    ) -> None:
        self._clock, self._seconds, self._lock = clock, seconds, threading.Lock()
        self._values: deque[tuple[float, float]] = deque(maxlen=most)

    def add(self, values: Iterable[float]) -> None:
        now = self._clock()
        with self._lock:
            self._values.extend((now, value) for value in values)

    def percentiles(self, *percents: float) -> list[float | None]:
        """By nearest rank; None where nothing happened."""
        oldest = self._clock() - self._seconds
        with self._lock:
            values = sorted(value for at, value in self._values if at >= oldest)
        if not values:
            return [None for _ in percents]
        return [values[max(0, -int(-p * len(values) // 100) - 1)] for p in percents]


class _Readings:
    """Turns what engines count themselves into metrics, at each scrape."""

    def __init__(self, prefix: str, readings: Mapping[str, Read]) -> None:
        self._prefix, self._readings = prefix, readings

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering reads no engine."""
        return []

    def collect(self) -> Iterator[Metric]:
        readings = {model: read() for model, read in list(self._readings.items())}
        for name, told, value in _GAUGES:
            gauge = GaugeMetricFamily(self._prefix + name, told, labels=["model_name"])
            for model, reading in readings.items():
                gauge.add_metric([model], value(reading))
            yield gauge
        for name, told, count in _COUNTERS:
            counter = CounterMetricFamily(self._prefix + name, told, labels=["model_name"])
            for model, reading in readings.items():
                counter.add_metric([model], count(reading.stats))
            yield counter
        info = Metric(self._prefix + "cache_config_info", "Of the key-value cache.", "gauge")
        lora = Metric(
            self._prefix + "lora_requests_info", "Adapters in use; when, as value.", "gauge"
        )
        for model, reading in readings.items():
            if reading.cache:
                info.add_sample(info.name, {"model_name": model, **reading.cache}, 1)
            if reading.lora:
                lora.add_sample(lora.name, {"model_name": model, **reading.lora}, time.time())
        yield from (info, lora)


_GAUGES: tuple[tuple[str, str, Callable[[Reading], float]], ...] = (
    ("num_requests_running", "In the batch.", lambda r: r.running),
    ("num_requests_waiting", "Waiting for a place in the batch.", lambda r: r.waiting),
    ("kv_cache_usage_perc", "Of the key-value cache; 1 is full.", lambda r: r.cache_usage),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("prefix_cache_queries", "Tokens looked up.", lambda s: s.prefix_cache_queries),
    ("prefix_cache_hits", "Tokens found.", lambda s: s.prefix_cache_hits),
    ("num_preemptions", "Answers put back for want of room.", lambda s: s.preemptions),
    ("spec_decode_num_draft_tokens", "Tokens proposed.", lambda s: s.spec_drafted),
    ("spec_decode_num_accepted_tokens", "Tokens kept of these.", lambda s: s.spec_accepted),
)
