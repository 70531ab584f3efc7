"""generate, chat and serve from the command line, on a run directory with a model and an index."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gristmill.engine import Engine
from gristmill.files import write_json
from gristmill.lm import Request, SamplingParams
from gristmill.retrieval import build
from gristmill.serve import listen
from tests.tiny_model import FACTS, LESSONS, QUESTIONS, random_model, taught_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pyhelp"
    taught_model().save(run / "dpo" / "model")
    build(run / "index" / "index.sqlite", FACTS, [])
    pointer = {"model": "dpo/model", "index": "index/index.sqlite", "recipe": "pyhelp"}
    write_json(run / "run.json", pointer)
    samples = [{"question": question} for question in QUESTIONS]
    write_json(run / "evaluate" / "manifest.json", {"metrics": {"samples": samples}})
    return run


def test_generate_writes_the_engines_text(gristmill, run: Path) -> None:
    prompt = "What does"
    params = SamplingParams(max_tokens=15, temperature=1.3, top_p=0.9, top_k=40, seed=3)
    (expected,) = Engine(taught_model()).generate([Request(prompt, params)])
    options = [
        "--max-tokens",
        "15",
        "--temperature",
        "1.3",
        "--top-p",
        "0.9",
        "--top-k",
        "40",
        "--seed",
        "3",
    ]
    streamed = gristmill("generate", run, prompt, *options)
    assert (streamed.code, streamed.out) == (0, expected.text + "\n")
    whole = gristmill("generate", run, "-", *options, "--no-stream", stdin=prompt)
    assert whole.out == streamed.out
    as_json = json.loads(gristmill("generate", run, prompt, *options, "--json").out)
    assert as_json["text"] == expected.text
    assert as_json["token_ids"] == list(expected.token_ids)
    assert as_json["finish_reason"] == expected.finish_reason and as_json["seed"] == 3
    greedy = json.loads(gristmill("generate", run, prompt, "--temperature", 0, "--json").out)
    assert "seed" not in greedy  # nothing was drawn


def test_generate_says_which_model_of_a_run_it_asks(gristmill, run: Path) -> None:
    """Of a run its base model, with the path of the one that is tuned to chat; else the one there is."""
    assert gristmill("generate", run, "x", "--json").err == f"model: {run / 'dpo/model'}\n"
    random_model().save(run / "pretrain" / "model")
    try:
        result = gristmill("generate", run, "x", "--json")
    finally:
        shutil.rmtree(run / "pretrain")
    assert json.loads(result.out)["model"] == str(run / "pretrain/model")
    assert f"tuned to chat is {run / 'dpo/model'}" in result.err


def test_eval_shows_what_is_under_way(gristmill, run: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("What does heapq.nlargest do?")
    result = gristmill("eval", run, "--text", tmp_path / "text", "--json")
    assert set(json.loads(result.out)) == {"model", "bits"}
    started, done = result.err.splitlines()
    assert started == f"[1/1] bits: bits per byte ({run / 'dpo/model'})"
    assert done.startswith("[1/1] bits: done in ")


def test_generate_stops_at_a_string_with_an_escape(gristmill, run: Path) -> None:
    engine = Engine(taught_model())
    drawn = (
        (seed, engine.generate([Request("the", SamplingParams(max_tokens=30, seed=seed))])[0].text)
        for seed in range(100)
    )
    seed, text = next((seed, text) for seed, text in drawn if "\n" in text[1:])
    cut = gristmill("generate", run, "the", "--max-tokens", 30, "--seed", seed, "--stop", r"\n")
    assert cut.out == text.split("\n")[0] + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-p", "0"], "top_p must be above 0"),
        (["--max-tokens", "0"], "max_tokens must be at least 1"),
        (["--logprobs", "2"], "--json"),
    ],
)
def test_generate_refuses_what_is_out_of_range(gristmill, run, arguments, message) -> None:
    result = gristmill("generate", run, "x", *arguments)
    assert result.code == 2
    assert message in result.err and "Traceback" not in result.err


def test_generate_without_a_model_or_room(gristmill, run: Path, tmp_path: Path) -> None:
    missing = gristmill("generate", tmp_path / "nothing", "x")
    assert missing.code == 2 and "nothing" in missing.err
    full = gristmill("generate", run, "a b c d " * 300)
    assert full.code == 2 and "384" in full.err


def test_chat_answers_each_line_of_a_pipe_by_itself(gristmill, run: Path) -> None:
    lines = f"{QUESTIONS[0]}\n\n{QUESTIONS[2]}\n"
    result = gristmill("chat", run, stdin=lines)
    assert result.code == 0
    assert result.out == f"{LESSONS[0][1]}\n{LESSONS[2][1]}\n"


def test_chat_with_the_runs_index_cites(gristmill, run: Path) -> None:
    shown = gristmill("chat", run, "--rag", stdin=QUESTIONS[1])
    assert FACTS[1].summary in shown.out
    assert "  python3.11/textwrap.py:419  textwrap.dedent\n" in shown.out
    asked = f"{QUESTIONS[1]}\nHow do volcanoes erupt?"
    turns = json.loads(gristmill("chat", run, "--rag", "--json", stdin=asked).out)["turns"]
    assert turns[0]["answer"] == LESSONS[1][1]
    assert turns[0]["citations"] == [
        {"source": "python3.11/textwrap.py", "line": 419, "title": "textwrap.dedent"}
    ]
    assert (turns[1]["found"], turns[1]["citations"]) == (False, [])
    named = gristmill("chat", run / "dpo" / "model", "--index", run / "index", stdin=QUESTIONS[1])
    assert named.out == shown.out


def test_chat_goes_on_after_a_question_that_does_not_fit(gristmill, run: Path) -> None:
    """The line of the input is told, blank ones counted; the answer's place stays empty."""
    lines = f"\n{'a b c ' * 300}\nq\udcff\n{QUESTIONS[0]}\n".encode(errors="surrogateescape")
    result = gristmill("chat", run, stdin=lines)
    assert result.code == 2 and result.out == f"\n\n{LESSONS[0][1]}\n"
    too_long, not_text = result.err.splitlines()
    assert too_long.startswith("line 2: ") and "384" in too_long
    assert not_text.startswith("line 3: not UTF-8 text: its byte 2 is 0xFF")
    turns = json.loads(gristmill("chat", run, "--json", stdin=lines).out)["turns"]
    assert [turn["line"] for turn in turns] == [2, 3, 4] and "error" in turns[0]
    assert turns[2]["answer"] == LESSONS[0][1]


def test_chat_without_an_input(gristmill, run: Path, monkeypatch) -> None:
    monkeypatch.setattr("io.TextIOWrapper", lambda *_, **__: None)  # as Python finds it when closed
    result = gristmill("chat", run)
    assert result.code == 2 and "standard input is closed" in result.err


def test_chat_needs_an_index_to_look_things_up(gristmill, run: Path) -> None:
    result = gristmill("chat", run / "dpo" / "model", "--rag", stdin="x")
    assert result.code == 2 and "--index" in result.err


def test_serve_tells_where_it_is_answers_and_ends_cleanly(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gristmill.cli.main", "serve", run, "--port", "0", "--json"]
    with subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            "XDG_DATA_HOME": str(tmp_path),
            **{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        },
    ) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert told["url"].startswith("http://127.0.0.1:")
            assert (told["model"], told["retrieval"]) == ("pyhelp", True)
            page = httpx.get(told["url"])
            assert "Gristmill" in page.text
            assert "default-src 'self'" in page.headers["content-security-policy"]
            (info,) = httpx.get(f"{told['url']}/app/info").json()["models"]
            assert info["examples"] == QUESTIONS and info["retrieval"]
            body = {
                "messages": [{"role": "user", "content": QUESTIONS[0]}],
                "retrieval": True,
                "temperature": 0,
            }
            got = httpx.post(f"{told['api']}/chat/completions", json=body, timeout=60).json()
            assert got["choices"][0]["message"]["citations"][0]["line"] == 523
        finally:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == "" and "Traceback" not in err


def test_serve_says_when_the_port_is_taken(gristmill, run: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        result = gristmill("serve", run, "--port", port)
    assert result.code == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in result.err and "--port" in result.err
    elsewhere = gristmill("serve", run, "--host", "203.0.113.9", "--port", 0)
    assert elsewhere.code == 2 and "203.0.113.9" in elsewhere.err


def test_serve_without_its_extra_names_it(gristmill, run: Path, monkeypatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "starlette"]:
        monkeypatch.setitem(sys.modules, module, None)
    for module in [name for name in sys.modules if name.startswith("gristmill.serve")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "starlette", None)
    result = gristmill("serve", run)
    assert result.code == 2
    assert "gristmill[serve]" in result.err


@pytest.mark.parametrize("verb", ["generate", "chat", "serve", "inspect", "bench", "parity"])
def test_help_has_examples(gristmill, verb: str) -> None:
    shown = gristmill(verb, "--help")
    assert shown.code == 0 and "Examples" in shown.out and "runs/pyhelp" in shown.out
    assert "llama2.c" in shown.out and "<bool>" not in shown.out and "{MODEL" not in shown.out
