"""Metrics, read back by Prometheus's own parser; percentiles against numpy's; times of a real engine's answers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families as read

from gristmill.engine import Engine, Stats
from gristmill.lm import Completion, Request, SamplingParams
from gristmill.serve.metrics import Metrics, Reading, Recent
from gristmill.serve.watching import Watch
from tests.tiny_model import random_model

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def samples(metrics: Metrics) -> Samples:
    text, kind = metrics.exposition()
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in read(text.decode())
        for s in family.samples
    }


def of(found: Samples, name: str, model: str = "tiny", **labels: str) -> float:
    return found[name, tuple(sorted({"model_name": model, **labels}.items()))]


def completion(tokens: int, reason: str = "stop") -> Completion:
    return Completion("", tuple(range(tokens)), reason, 10)  # type: ignore[arg-type]


def test_histograms_hold_what_was_observed() -> None:
    metrics = Metrics()
    tiny = metrics.model("tiny")
    assert metrics.model("tiny") is tiny
    tiny.first(10, 4, 0.3)
    tiny.tokens(3, [0.02, 0.04, 0.2])
    tiny.step(40)
    tiny.finished(completion(5), 10.0, 10.5, 11.0, 13.0, n=2, max_tokens=100)
    found = samples(metrics)

    def histogram(name: str) -> tuple[float, float]:
        return of(found, f"vllm:{name}_count"), of(found, f"vllm:{name}_sum")

    assert histogram("time_to_first_token_seconds") == (1, 0.3)
    assert of(found, "vllm:time_to_first_token_seconds_bucket", le="0.25") == 0
    assert of(found, "vllm:time_to_first_token_seconds_bucket", le="0.5") == 1
    assert histogram("inter_token_latency_seconds") == (3, pytest.approx(0.26))
    assert of(found, "vllm:inter_token_latency_seconds_bucket", le="0.05") == 2
    assert histogram("e2e_request_latency_seconds") == (1, 3.0)
    assert histogram("request_queue_time_seconds") == (1, 0.5)
    assert histogram("request_prefill_time_seconds") == (1, 0.5)
    assert histogram("request_decode_time_seconds") == (1, 2.0)
    assert histogram("request_inference_time_seconds") == (1, 2.5)
    assert histogram("time_per_output_token_seconds") == (1, 0.5)  # 2 s for 4 of 5 tokens
    assert histogram("request_prompt_tokens") == (1, 10)
    assert histogram("request_generation_tokens") == (1, 5)
    assert histogram("request_params_n") == (1, 2)
    assert histogram("request_params_max_tokens") == (1, 100)
    assert histogram("iteration_tokens_total") == (1, 40)
    assert of(found, "vllm:prompt_tokens_total") == 10
    assert of(found, "vllm:prompt_tokens_cached_total") == 4
    assert of(found, "vllm:generation_tokens_total") == 3
    assert of(found, "vllm:request_success_total", finished_reason="stop") == 1
    assert of(found, "vllm:request_success_total", finished_reason="abort") == 0


def test_an_answer_that_never_began_has_no_times_of_its_parts() -> None:
    metrics = Metrics()
    metrics.model("tiny").finished(completion(0, "abort"), 10.0, None, None, 11.0)
    found = samples(metrics)
    assert of(found, "vllm:e2e_request_latency_seconds_sum") == 1.0
    for name in ("request_queue_time", "request_prefill_time", "time_per_output_token"):
        assert of(found, f"vllm:{name}_seconds_count") == 0
    assert of(found, "vllm:request_success_total", finished_reason="abort") == 1


def test_engines_are_read_when_somebody_scrapes() -> None:
    metrics, stats, asked = Metrics(), Stats(prefix_cache_queries=100), []

    def look() -> Reading:
        asked.append(1)
        return Reading(3, 2, 0.25, stats, {"block_size": "16", "num_gpu_blocks": "64"})

    metrics.watch("tiny", look)
    metrics.watch("other", lambda: Reading(0, 0, 0.0, Stats(preemptions=7)))
    assert not asked
    found = samples(metrics)
    assert of(found, "vllm:num_requests_running") == 3
    assert of(found, "vllm:num_requests_waiting") == 2
    assert of(found, "vllm:kv_cache_usage_perc") == 0.25
    assert of(found, "vllm:prefix_cache_queries_total") == 100
    assert of(found, "vllm:num_preemptions_total", "other") == 7
    info = of(found, "vllm:cache_config_info", block_size="16", num_gpu_blocks="64")
    assert info == 1
    stats.prefix_cache_hits = 50
    assert of(samples(metrics), "vllm:prefix_cache_hits_total") == 50
    assert len(asked) == 2


def test_two_apps_share_nothing_and_the_global_registry_stays_empty_of_us() -> None:
    first, second = Metrics(), Metrics("gristmill:")
    first.model("tiny").step(5)
    second.model("tiny").step(7)
    assert of(samples(first), "vllm:iteration_tokens_total_sum") == 5
    assert of(samples(second), "gristmill:iteration_tokens_total_sum") == 7
    assert not [m.name for m in REGISTRY.collect() if m.name.startswith(("vllm", "gristmill"))]


def test_what_is_exposed_is_well_formed() -> None:
    metrics = Metrics()
    metrics.model('a"\\\nb').first(10, 0, 0.3)
    metrics.watch("tiny", lambda: Reading(1, 0, 0.5, Stats(), {"block_size": "16"}))
    text = metrics.exposition()[0].decode()
    families = {family.name: family for family in read(text)}
    assert families["vllm:prompt_tokens"].type == "counter"
    assert families["vllm:num_requests_running"].type == "gauge"
    assert families["vllm:time_to_first_token_seconds"].type == "histogram"
    assert of(samples(metrics), "vllm:prompt_tokens_total", 'a"\\\nb') == 10
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


def test_an_unloaded_adapter_leaves_no_series() -> None:
    metrics = Metrics()
    for name in ("tiny", "adapter"):
        metrics.model(name).finished(completion(2), 1.0, 1.0, 1.0, 2.0)
    metrics.forget("adapter")
    metrics.forget("adapter")
    models = {labels for _, labels in samples(metrics)}
    assert not [labels for labels in models if ("model_name", "adapter") in labels]
    assert of(samples(metrics), "vllm:e2e_request_latency_seconds_count") == 1


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 1000])
def test_percentiles_are_numpys(count: int) -> None:
    clock = Clock()
    recent = Recent(clock)
    values = np.random.default_rng(count).exponential(size=count)
    recent.add(values.tolist())
    want = np.percentile(values, [50, 95, 100], method="inverted_cdf")
    assert recent.percentiles(50, 95, 100) == want.tolist()


def test_percentiles_forget() -> None:
    clock = Clock()
    recent = Recent(clock, seconds=60, most=4)
    assert recent.percentiles(50, 95) == [None, None]
    recent.add([9.0])
    clock.now += 59
    recent.add([1.0, 1.0])
    assert recent.percentiles(100) == [9.0]
    clock.now += 2
    assert recent.percentiles(100) == [1.0]
    recent.add([2.0, 2.0, 3.0])
    assert recent.percentiles(25, 100) == [1.0, 3.0]  # the latest four


def test_the_times_of_a_real_engines_answers() -> None:
    """One answer arrives while another runs in the only place: it waits, which its queue time says."""
    engine, metrics = Engine(random_model(), max_rows=1), Metrics()
    engine.tokenizer.stop_ids = frozenset()
    watch = Watch(lambda adapter: metrics.model(adapter or "tiny"), lambda: engine.stats)
    params = SamplingParams(max_tokens=6, temperature=0)
    answers = [engine.prepare(Request(token_ids=[1, 2, k], params=params)) for k in (3, 4)]
    told = dict.fromkeys(answers, 0)
    done: list[float] = []
    begun = time.monotonic()
    for g in answers:
        watch.arrived(g, begun)
        engine.add(g)
    while engine.busy:
        engine.step()
        at = time.monotonic()
        gained = [(g, len(g.output) - told[g]) for g in answers if len(g.output) > told[g]]
        watch.step(gained, at)
        for g, count in gained:
            told[g] += count
            if g.completion is not None:
                done.append(at)
                watch.ended(g, g.completion, at)
    first, second = (watch.times(g) for g in answers)
    assert first is not None and second is not None
    assert first.queue_seconds() == 0
    assert second.began == done[0]
    assert second.first is not None and second.began is not None and second.first > second.began
    found = samples(metrics)
    assert of(found, "vllm:generation_tokens_total") == 12
    assert of(found, "vllm:prompt_tokens_total") == 6
    assert of(found, "vllm:inter_token_latency_seconds_count") == 10
    assert of(found, "vllm:iteration_tokens_total_sum") == engine.stats.computed
    assert of(found, "vllm:iteration_tokens_total_count") == engine.stats.steps
    assert of(found, "vllm:request_success_total", finished_reason="length") == 2
    queued = of(found, "vllm:request_queue_time_seconds_sum")
    assert queued == pytest.approx(done[0] - begun)
    whole = of(found, "vllm:e2e_request_latency_seconds_sum")
    assert whole == pytest.approx(sum(done) - 2 * begun)
