"""The server's own faults and its end: steps that fail, signals under load, a store that outlives a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gristmill.engine import Engine
from gristmill.errors import WorkError
from gristmill.lm import Request, SamplingParams
from gristmill.machine import resident_memory
from gristmill.serve import worker
from tests.serve.faults import CHAT, COMPLETIONS, SHORT, endless_engine, soon, target
from tests.tiny_model import PROMPTS, random_model

CODE = "from gristmill.cli.main import main; main()"


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context takes long to fill; with ignore_eos nothing ends an answer before."""
    path = tmp_path_factory.mktemp("endless") / "model"
    random_model(max_seq_len=100_000).save(path)
    return path


@contextmanager
def running(model: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", CODE, "serve", f"m={model}", "--port", "0", "--json", *options]
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.communicate()


def stream(url: str, tokens: int, seen: threading.Event) -> list[str]:
    """The data of all events. `seen` is set with the first text."""
    body = {"prompt": "a heap", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    events = []
    with httpx.stream("POST", url + COMPLETIONS, json=body, timeout=120) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(line[6:])
                if len(events) > 3:
                    seen.set()
    return events


def streams(pool: ThreadPoolExecutor, url: str, tokens: int) -> list[Any]:
    """Four of them, all under way."""
    seen = [threading.Event() for _ in range(4)]
    asked = [pool.submit(stream, url, tokens, event) for event in seen]
    assert all(event.wait(60) for event in seen)
    return asked


def test_sigterm_under_load_lets_streams_end_and_refuses_new_ones(endless: Path) -> None:
    with running(endless, "--no-store") as (process, url), ThreadPoolExecutor(4) as pool:
        asked = streams(pool, url, 3000)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        ready, new = httpx.get(f"{url}/ready"), httpx.post(url + CHAT, json=SHORT)
        assert ready.status_code == 503 and new.status_code == 503
        assert "retry-after" in new.headers and "going down" in new.json()["error"]["message"]
        for each in asked:
            events = each.result()
            assert events[-1] == "[DONE]"
            assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) == 0


def test_what_outlasts_the_drain_is_told(endless: Path) -> None:
    with running(endless, "--no-store", "--drain-seconds", 1) as (process, url):
        with ThreadPoolExecutor(4) as pool:
            asked = streams(pool, url, 90_000)
            process.send_signal(signal.SIGTERM)
            for each in asked:
                assert "going down" in json.loads(each.result()[-1])["error"]["message"]
        assert process.wait(20) == 0


def test_a_second_signal_ends_at_once(endless: Path) -> None:
    slow = running(endless, "--no-store", "--drain-seconds", 300)
    with slow as (process, url), ThreadPoolExecutor(4) as pool:
        asked = streams(pool, url, 90_000)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.8)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert all(isinstance(each.exception(), httpx.HTTPError) for each in asked)


def test_a_killed_servers_store_is_whole(endless: Path, tmp_path: Path) -> None:
    store = tmp_path / "kept.sqlite"
    with running(endless, "--store", store) as (process, url):
        body = {"input": "a heap", "max_output_tokens": 5}
        kept = [httpx.post(f"{url}/v1/responses", json=body, timeout=60).json() for _ in range(3)]
        os.kill(process.pid, signal.SIGKILL)
    assert sqlite3.connect(store).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with running(endless, "--store", store) as (_, url):
        for each in kept:
            found = httpx.get(f"{url}/v1/responses/{each['id']}").json()
            assert found["output"] == each["output"]


def test_an_exception_in_one_request_is_told_to_it_alone(monkeypatch) -> None:
    engine = endless_engine()
    broken = engine.prepare(Request("x", SamplingParams(1))).prompt[-1]
    real = engine._turns.core._append

    def fragile(g, *rest):
        if g.prompt[-1] == broken and len(g.output) == 3:
            raise ZeroDivisionError("secret of the house")
        return real(g, *rest)

    with target(engine) as at:
        monkeypatch.setattr(engine._turns.core, "_append", fragile)
        with ThreadPoolExecutor(2) as pool:
            other = pool.submit(at.ask, CHAT, SHORT)
            body = {"prompt": "x", "max_tokens": 9}
            whole = at.ask(COMPLETIONS, body)
            text = at.ask(COMPLETIONS, body | {"stream": True}).text
            assert other.result().json()["choices"][0]["message"]["content"] == at.alone
        assert whole.status_code == 500 and "secret" not in whole.text
        assert "secret" not in text and '"error"' in text and "[DONE]" not in text
        assert at.at_rest()


@pytest.mark.parametrize(
    "body", [{"n": 3, **SHORT}, {"prompt": ["x", "a b c"]}], ids=["n", "prompts"]
)
def test_where_one_answer_breaks_the_others_to_the_request_end(monkeypatch, body) -> None:
    """Nobody would hear them, and they would go on to their last token."""
    real, broken = worker.Worker._news, []

    def fragile(self, g, listener):
        if len(g.output) > 3 and not (broken and broken[0] is not g):
            broken.append(g)
            return WorkError("this one broke")
        return real(self, g, listener)

    with target(endless_engine()) as at:
        monkeypatch.setattr(worker.Worker, "_news", fragile)
        path = CHAT if "messages" in body else COMPLETIONS
        got = at.ask(path, {**body, "max_tokens": 10_000})
        assert got.status_code == 500 and "this one broke" in got.text
        assert soon(at.at_rest, 5)


def test_more_answers_than_a_server_makes_at_once_are_the_requests_fault(url: str) -> None:
    """503 would have clients ask again for ever."""
    body = {"prompt": ["x"] * 256, "n": 5, "max_tokens": 1}
    refused = httpx.post(f"{url}{COMPLETIONS}", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert "1280" in refused.text and "1024" in refused.text


def test_more_than_the_worker_takes_is_refused_early(monkeypatch) -> None:
    monkeypatch.setattr(worker, "MAX_UNDER_WAY", 16)
    with target(endless_engine()) as at, ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(lambda _: at.ask(CHAT, SHORT), range(48)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 16
        for answer in answers:
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["message"]["content"] == at.alone
            else:
                assert answer.headers["retry-after"]


def test_of_many_at_once_none_is_left_behind() -> None:
    """Every stream ends within the same few steps: shares are equal."""
    with target(Engine(random_model(max_seq_len=2000), max_rows=64)) as at:
        body = {"max_tokens": 100, "ignore_eos": True, "temperature": 1}
        ended: list[float] = []

        def ask(number: int) -> int:
            got = at.ask(COMPLETIONS, body | {"prompt": PROMPTS[number % 8], "seed": number})
            ended.append(time.monotonic())
            return got.json()["usage"]["completion_tokens"]

        begun = time.monotonic()
        with ThreadPoolExecutor(64) as pool:
            assert set(pool.map(ask, range(64))) == {100}
        assert ended[0] - begun > 0.5 * (ended[-1] - begun)


def test_five_hundred_requests_half_of_them_left_leak_nothing() -> None:
    draw = random.Random(0)
    threads = threading.active_count()
    # A small cache: the pages of a large one are touched for the first time all along.
    with target(endless_engine(cache_tokens=4096)) as at:

        def ask(number: int) -> None:
            connection = at.send(CHAT, SHORT | {"stream": True, "seed": number})
            if draw.random() < 0.5:
                time.sleep(draw.random() * 0.05)
            else:
                while b"[DONE]" not in (got := connection.recv(65536)) and got:
                    pass
            connection.close()

        def batch(first: int) -> None:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(ask, range(first, first + 250)))

        batch(0)
        held = resident_memory()
        batch(250)
        for _ in range(100):
            if at.at_rest():
                break
            time.sleep(0.05)
        assert at.at_rest()
        assert resident_memory() - held < 8 << 20
    assert threading.active_count() <= threads + 4  # of shared pools
