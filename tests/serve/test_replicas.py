"""`gristmill serve --replicas 2`: real processes of Ray, and the SDK in front of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, BadRequestError, OpenAI, RateLimitError
from prometheus_client.parser import text_string_to_metric_families

from gristmill import Engine, Model, Request, SamplingParams
from gristmill.errors import RequestError
from gristmill.serve.keys import add_key
from tests.tiny_model import PROMPTS, random_model

MODEL = random_model(max_seq_len=4096)
PROGRAM = [sys.executable, "-m", "gristmill.cli.main", "serve"]


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    key: str
    small_key: str  # 100 tokens a minute

    def client(self, key: str | None = None) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"x-api-key": self.key}, timeout=30)

    def post(self, path: str, **sent: Any) -> httpx.Response:
        return httpx.post(self.url + path, headers={"x-api-key": self.key}, timeout=30, **sent)

    def counted(self, name: str) -> dict[str, float]:
        """A counter of each replica."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return {s.labels["replica"]: s.value for s in samples if s.name == f"vllm:{name}_total"}

    def running(self) -> int:
        return self.get("/app/stats").json()["models"]["tiny"]["running"]

    def replicas(self) -> list[int]:
        of = descendants(self.process.pid)
        return [pid for pid in of if b"ray::ServeReplica" in read(f"/proc/{pid}/cmdline")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replicas") / "tiny"
    MODEL.save(path, format="hf")
    return path


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Server]:
    keys = model.parent / "keys.jsonl"
    keys.unlink(missing_ok=True)
    mine, small = add_key(keys, "mine"), add_key(keys, "small", tokens_per_minute=100)
    command = [*PROGRAM, str(model), "--replicas", "2", "--port", "0", "--json"]
    command += ["--api-key-file", str(keys), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield Server(process, json.loads(line)["url"], mine, small)
        finally:
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    store = str(model.parent / "store.sqlite")
    log = str(model.parent / "log.jsonl")
    with serving(model, "--store", store, "--drain-seconds", "0.5", "--request-log", log) as it:
        yield it


def descendants(pid: int) -> list[int]:
    """All that it has started, and what that has started. Linux."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = read(str(path)).rpartition(b")")[2].split()
        if fields and fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.05)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call(), calls))


def test_answers_equal_those_of_the_engine_alone(server: Server) -> None:
    client = server.client()
    asked = [(prompt, t) for prompt in PROMPTS for t in (0.0, 1.0)]

    def ask(prompt: str, temperature: float) -> str:
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=24, temperature=temperature, seed=7
        )
        return answer.choices[0].text

    before = server.counted("generation_tokens")
    got = at_once([lambda one=one: ask(*one) for one in asked])
    engine = Engine(MODEL)
    wanted = [
        engine.generate([Request(p, SamplingParams(max_tokens=24, temperature=t, seed=7))])[0].text
        for p, t in asked
    ]
    assert got == wanted
    after = server.counted("generation_tokens")
    assert sorted(after) == ["0", "1"]
    assert all(after[each] > before.get(each, 0) for each in after)  # both took part


def test_a_stream_says_what_a_whole_answer_says(server: Server) -> None:
    client = server.client()
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": PROMPTS[5]}],
        "max_tokens": 40,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content and len(chunks) > 10
    assert whole.usage and chunks[-1].usage
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_stream_comes_as_it_is_made(server: Server) -> None:
    with long_stream(server, "x", 600) as lines:
        begun = time.monotonic()
        assert next(lines)
        first = time.monotonic() - begun
        while next(lines) != "data: [DONE]":
            pass
        assert first < (time.monotonic() - begun) / 2


@contextmanager
def long_stream(server: Server, prompt: str, tokens: int) -> Iterator[Iterator[str]]:
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"x-api-key": server.key}
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as response:
        assert response.status_code == 200
        yield response.iter_lines()


def test_turns_of_a_conversation_go_to_one_replica(server: Server) -> None:
    client = server.client()

    def answer(messages: list[dict[str, str]]) -> Any:
        return client.chat.completions.create(
            model="tiny",
            messages=messages,  # type: ignore[arg-type]
            max_tokens=24,
            temperature=0,
        )

    talks = [
        [{"role": "user", "content": f"{i}: a story of {i} bears in the wood, please; a long one"}]
        for i in range(6)
    ]
    before = server.counted("prefix_cache_hits")
    for turn in range(3):
        answers = at_once([lambda talk=talk: answer(talk) for talk in talks])
        for talk, given in zip(talks, answers, strict=True):
            cached = given.usage.prompt_tokens_details.cached_tokens
            told = sum(len(message["content"]) for message in talk)
            assert cached == 0 if turn == 0 else cached > 16, (turn, told, given.usage)
            talk.append({"role": "assistant", "content": given.choices[0].message.content})
            talk.append({"role": "user", "content": "And then? What did they do in the winter?"})
    after = server.counted("prefix_cache_hits")
    assert all(after[each] > before[each] for each in after)  # and not all to the same one


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_ends_the_answer(server: Server, stream: bool) -> None:
    assert server.running() == 0
    if stream:
        with long_stream(server, "x", 3000) as lines:
            assert next(lines)
            until(lambda: server.running() == 1)
    else:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 3000, "ignore_eos": True}
        with pytest.raises(httpx.ReadTimeout):
            url, headers = f"{server.url}/v1/completions", {"x-api-key": server.key}
            httpx.post(url, json=body, headers=headers, timeout=0.3)
    until(lambda: server.running() == 0, 1)
    made = sum(server.counted("generation_tokens").values())
    time.sleep(0.3)
    assert sum(server.counted("generation_tokens").values()) == made


def test_a_keys_tokens_are_counted_over_all_replicas(server: Server) -> None:
    """40 tokens each, and 100 a minute: two may, whichever replicas they go to."""
    client = server.client(server.small_key)

    def ask(i: int) -> int | None:
        try:
            answer = client.completions.with_raw_response.create(
                model="tiny",
                prompt=[i] * 8,
                max_tokens=32,
                extra_body={"ignore_eos": True},
            )
        except RateLimitError as error:
            assert int(error.response.headers["retry-after"]) > 0
            return None
        return int(answer.headers["x-ratelimit-remaining-tokens"])

    left = [n for n in at_once([lambda i=i: ask(i) for i in range(8)]) if n is not None]
    assert len(left) == 2 and all(20 <= n <= 62 for n in left), left


def test_the_log_has_what_the_replica_knows(server: Server, model: Path) -> None:
    sent = {"model": "tiny", "prompt": "secret" * 9, "max_tokens": 5, "ignore_eos": True}
    answer = server.post("/v1/completions", json=sent)
    path, id = model.parent / "log.jsonl", answer.headers["x-request-id"]
    until(lambda: id in path.read_text())  # it is written after the response's end
    log = path.read_text()
    (told,) = [json.loads(line) for line in log.splitlines() if id in line]
    usage = answer.json()["usage"]
    assert (told["key"], told["model"], told["finish_reason"]) == ("mine", "tiny", "length")
    assert told["prompt_tokens"] == usage["prompt_tokens"] and told["completion_tokens"] == 5
    assert told["ttft_ms"] > 0 and "secret" not in log


def test_without_a_key_nothing_is_passed_on(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.get("/app/info").json()["keys_required"] is True
    assert "Gristmill" in server.get("/").text


def test_errors_are_those_of_one_process(server: Server) -> None:
    wrong = server.post("/v1/chat/completions", content=b"[")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_json")
    nowhere = server.get("/v1/nothing")
    assert nowhere.status_code == 404 and "nothing" in nowhere.json()["error"]["message"]
    with pytest.raises(APIError, match="no model"):
        server.client().completions.create(model="other", prompt="x")


def test_what_several_processes_cannot_do_is_refused_by_name(server: Server) -> None:
    attached = server.post("/app/attachments?name=a.txt", content=b"x")
    assert attached.status_code == 400
    assert "--replicas" in attached.json()["error"]["message"]
    with pytest.raises(BadRequestError) as refused:
        server.client().responses.create(model="tiny", input="x", background=True)
    assert refused.value.param == "background"


def test_what_is_kept_is_there_whoever_answers(server: Server) -> None:
    client = server.client()
    made = client.responses.create(model="tiny", input="Once upon", max_output_tokens=16)
    for _ in range(6):  # with nothing in common, they go to both
        assert client.responses.retrieve(made.id).output_text == made.output_text
    follow = client.responses.create(
        model="tiny", input="a time", previous_response_id=made.id, max_output_tokens=16
    )
    assert follow.usage and made.usage
    assert follow.usage.input_tokens > made.usage.total_tokens


def test_nothing_of_it_listens_beyond_this_machine(server: Server) -> None:
    """Ray's ports take pickles, which are programs."""
    sockets = set()
    for pid in [server.process.pid, *descendants(server.process.pid)]:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(link))
            except OSError:
                continue
    bound = []
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # listening
                bound.append(fields[1].split(":")[0])
    assert len(bound) > 5
    # 127.0.0.1, and the same in IPv6, in the byte order of the machine
    assert set(bound) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_a_replica_that_dies_is_replaced(server: Server) -> None:
    old = server.replicas()
    assert len(old) == 2
    with long_stream(server, "x", 1500) as first, long_stream(server, "y", 1500) as second:
        assert next(first) and next(second)
        os.kill(old[0], signal.SIGKILL)
        client = server.client()
        for _ in range(4):  # at once, by the other one
            assert client.completions.create(model="tiny", prompt="x", max_tokens=4).choices
        ends = [[line for line in lines if line][-1] for lines in (first, second)]
    assert sorted("has died" in end for end in ends) == [False, True], ends
    assert "data: [DONE]" in ends
    until(lambda: len(server.counted("prefix_cache_queries")) == 2)
    assert len(server.replicas()) == 2 and server.replicas() != old
    new = {each: made for each, made in server.counted("prefix_cache_queries").items() if not made}
    assert len(new) == 1
    client.completions.create(model="tiny", prompt="nobody knows this", max_tokens=4)
    assert all(server.counted("prefix_cache_queries").values())  # it takes part


def test_ctrl_c_lets_what_runs_say_a_last_word_and_leaves_nothing(server: Server) -> None:
    """The last one to ask this server."""
    started = descendants(server.process.pid)
    assert len(started) > 5
    with long_stream(server, "x", 4000) as lines:
        assert next(lines)
        server.process.send_signal(signal.SIGINT)
        until(lambda: server.get("/ready").status_code == 503)
        assert server.post("/v1/completions", json={"prompt": "x"}).status_code == 503
        words = [line for line in lines if line]
    assert "going down" in words[-1], words[-1]
    _, err = server.process.communicate(timeout=30)
    assert server.process.returncode == 0 and "Traceback" not in err, err
    until(lambda: not [pid for pid in started if alive(pid)], 10)


def alive(pid: int) -> bool:
    state = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return bool(state) and state[0] != b"Z"


def test_without_ray_the_extra_is_named(model: Path) -> None:
    blocked = "import sys; sys.modules['ray'] = None\nfrom gristmill.cli.main import main; main()"
    command = [sys.executable, "-c", blocked, "serve", str(model), "--replicas", "2", "--port", "0"]
    done = subprocess.run([*command, "--no-store"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "[ray]" in done.stderr, done.stderr


def test_a_model_that_does_not_load_is_told_of_as_by_one_process(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError) as one:
        Model.load(str(tmp_path))
    command = [*PROGRAM, str(tmp_path), "--replicas", "2", "--port", "0", "--no-store"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert " ".join(str(one.value).split()) in " ".join(done.stderr.split())
