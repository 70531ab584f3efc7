"""gristmill compare: by numbers, and blind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import httpx
import pytest

from gristmill.errors import RequestError, WorkError
from gristmill.evaluate.blind import CLEAR, Comparison, Result, binomial_p, sentence
from gristmill.quantize import QuantizeConfig, quantize
from gristmill.serve import served
from gristmill.serve.blind import build_blind_app
from tests.tiny_model import QUESTIONS

PROMPTS = ["one", "two", "same", "three", "four"]
NAMES = ("full", "quant")


def says(prompt: str) -> tuple[str, str]:
    return ("x", "x ") if prompt == "same" else (f"full on {prompt}", f"quant on {prompt}")


@pytest.fixture(scope="module")
def copy(taught, tmp_path_factory) -> Path:
    config = QuantizeConfig(method="rtn", group="channel")
    return quantize(taught, tmp_path_factory.mktemp("copy") / "rtn", config).target


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (3, 1), (4, 4), (2, 7), (9, 0)])
def test_the_p_value_is_the_share_of_coin_sequences_at_least_as_uneven(a, b):
    heads = [sum(coins) for coins in product((0, 1), repeat=a + b)]
    uneven = sum(max(h, a + b - h) >= max(a, b) for h in heads)
    assert binomial_p(a, b) == pytest.approx(uneven / len(heads))


def test_the_sentence_says_what_the_numbers_mean():
    def said(first: int, second: int) -> str:
        return sentence(Result(first, second, 1, 0, binomial_p(first, second)), *NAMES)

    assert binomial_p(15, 3) < CLEAR and "preferred full in 15 of 18" in said(15, 3)
    assert "the difference is real for you" in said(15, 3)
    assert "no difference is shown" in said(6, 5) and "split evenly: 5 of 10" in said(5, 5)
    assert "(3 decided pairs can never show one; 6 can.)" in said(3, 0)
    assert "in no pair" in said(0, 0)
    assert sentence(Result(0, 0, 0, 3, 1.0), *NAMES).startswith(
        "full and quant gave the same answer to each of 3 prompts"
    )
    assert sentence(Result(0, 0, 0, 0, 1.0), *NAMES).startswith("No pair was judged")


@pytest.mark.parametrize(
    ("first", "second", "chance"),
    [(5, 5, "100%"), (6, 5, "100%"), (6, 4, "75%"), (15, 3, "0.75%"), (20, 0, "less than 0.01%")],
)
def test_chances_are_percentages(first, second, chance):
    """6 to 5 of 11: every split is at least so uneven. 6 to 4: all but 252 of 1024. 15 to 3: 2·988 of 2^18."""
    result = Result(first, second, 0, 0, binomial_p(first, second))
    assert f"would come up in {chance} of such tests" in sentence(result, *NAMES)


def test_sides_are_drawn_and_answers_survive(tmp_path):
    file = tmp_path / "a.jsonl"
    many = Comparison(tmp_path / "b.jsonl", *NAMES, ["p"] * 400, seed=1)
    swapped = sum(map(many.swapped, range(400)))
    assert 160 < swapped < 240
    first = Comparison(file, *NAMES, PROMPTS, seed=1)
    first.answer(0, "first")
    first.answer(0, "second")  # sent twice
    first.answer(1, "second")
    first.undo()
    first.answer(1, "neither")
    again = Comparison(file, *NAMES, PROMPTS, seed=1)
    assert again.next == 2 and again.judged == 2 and not again.ended
    assert again.result() == Result(1, 0, 1, 0, 1.0)
    again.end()
    again.answer(2, "first")  # after the result was seen nothing counts
    assert Comparison(file, *NAMES, PROMPTS, seed=1).result() == Result(1, 0, 1, 0, 1.0)
    with pytest.raises(RequestError, match="holds no answers to this comparison"):
        Comparison(file, *NAMES, PROMPTS, seed=2)


@pytest.mark.parametrize("kept", ["all", "a part", "nothing"])
def test_a_torn_last_line_costs_that_answer_alone(tmp_path, kept):
    """Prompts hold what other programs take for the end of a line, and a letter of several bytes is torn."""
    file, prompts = tmp_path / "a.jsonl", ["one\u2028two\x85three", "naïve", "3"]
    comparison = Comparison(file, *NAMES, prompts, seed=1)
    comparison.answer(0, "first")
    comparison.answer(1, "second")
    whole = file.read_bytes()
    torn = {"all": whole, "a part": whole[: whole.rindex("ï".encode()) + 1], "nothing": b""}[kept]
    file.write_bytes(torn)
    again = Comparison(file, *NAMES, prompts, seed=1)
    assert again.next == {"all": 2, "a part": 1, "nothing": 0}[kept]
    for number in range(again.next, 2):
        again.answer(number, "neither" if number else "first")
    again.undo()
    again.answer(1, "second")
    assert file.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_file_of_something_else_is_never_written_to(tmp_path):
    file = tmp_path / "notes.txt"
    for content in ("notes without an end", "notes\nmore"):
        file.write_text(content)
        with pytest.raises(RequestError, match="holds no answers to this comparison"):
            Comparison(file, *NAMES, PROMPTS, seed=1)
        assert file.read_text() == content


def test_an_answer_that_failed_is_made_again(tmp_path):
    calls: list[str] = []

    def fails_once(prompt: str) -> tuple[str, str]:
        calls.append(prompt)
        if calls.count("one") == 1 and prompt == "one":
            raise WorkError("the engine's step failed")
        return says(prompt)

    comparison = Comparison(tmp_path / "a.jsonl", *NAMES, PROMPTS, seed=0)
    with served(build_blind_app(comparison, fails_once, NAMES)) as url:
        failed = httpx.get(f"{url}/state")
        assert failed.status_code == 503 and "step failed" in failed.json()["error"]
        assert httpx.get(f"{url}/state").json()["pair"]["number"] == 0


def test_a_key_waits_until_the_pair_of_another_tab_is_there(tmp_path):
    """A comparison is changed by one at a time: who looks is not shown a pair of one that has ended meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(prompt: str) -> tuple[str, str]:
        begun.set()
        assert go_on.wait(20)
        return says(prompt)

    comparison = Comparison(tmp_path / "a.jsonl", *NAMES, PROMPTS, seed=0)
    with served(build_blind_app(comparison, slow, NAMES)) as url, ThreadPoolExecutor(2) as pool:
        looks = pool.submit(httpx.get, f"{url}/state", timeout=20)
        assert begun.wait(20)
        body = {"number": 0, "key": "end"}
        ends = pool.submit(httpx.post, f"{url}/state", json=body, timeout=20)
        time.sleep(0.3)
        ended = comparison.ended
        go_on.set()
        assert "pair" in looks.result().json() and "result" in ends.result().json()
    assert not ended and comparison.ended


def test_the_page_is_told_nothing_but_the_texts_until_the_end(tmp_path):
    comparison = Comparison(tmp_path / "a.jsonl", *NAMES, PROMPTS, seed=0)
    with served(build_blind_app(comparison, says, NAMES)) as url:
        told = httpx.get(f"{url}/state").json()
        picks = []
        while "pair" in told:
            assert set(told) == {"done", "total", "judged", "pair"}
            pair = told["pair"]
            assert {pair["left"], pair["right"]} == set(says(pair["prompt"]))
            key = "1" if pair["left"].startswith("full") else "2"  # always the full model's
            picks.append(key)
            body = {"number": pair["number"], "key": key}
            told = httpx.post(f"{url}/state", json=body).json()
        assert told["result"]["first"] == 4 and told["result"]["identical"] == 1
        assert told["result"]["sentence"].startswith("You preferred full in 4 of 4")
        assert set(picks) == {"1", "2"}
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert httpx.post(f"{url}/state", content=b"{}", headers=form).status_code == 415
        assert httpx.post(f"{url}/state", json={"key": "9", "number": 0}).status_code == 400
        elsewhere = httpx.get(f"{url}/state", headers={"host": "evil.example"})
        assert elsewhere.status_code == 400


def test_a_comparison_is_left_and_taken_up_again(gristmill, taught, copy, tmp_path, monkeypatch):
    """The program itself: judge one pair over HTTP, interrupt, go on, end."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(["Say a word.", *QUESTIONS, "And another one?", "heap"]))
    command = [sys.executable, "-m", "gristmill.cli.main", "compare", str(taught), str(copy)]
    command += ["--blind", "--prompts", str(prompts), "--max-tokens", "24", "--json"]
    command += ["--temperature", "2"]  # so that the two say different things

    def session(keys: list[str]) -> dict:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr and process.stdout
        line = next(line for line in process.stderr if "http://" in line)
        url = line[line.index("http://") :].split()[0]
        for key in keys:
            told = httpx.get(f"{url}/state", timeout=60).json()
            if "pair" in told or key == "end":
                number = told.get("pair", {"number": 0})["number"]
                httpx.post(f"{url}/state", json={"number": number, "key": key}, timeout=60)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return json.loads(out)

    first = session(["1"])
    assert first["judged"] == 1 and not first["ended"] and "p_value" not in first
    second = session(["0", "end"])
    assert second["judged"] == 2 and second["ended"] and second["p_value"] == 1.0
    assert second["ties"] == 1 and second["first"] + second["second"] == 1
    monkeypatch.chdir(tmp_path)
    shown = gristmill(*command[3:])
    assert json.loads(shown.out) == second  # it has ended: no server, the result alone
    assert len(list(tmp_path.glob("blind-rtn-*.jsonl"))) == 1


def test_a_prompt_beyond_the_context_is_refused_before_the_page(gristmill, taught, copy, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Say a word.\n" + "heap " * 400)
    given = ["--blind", "--prompts", prompts, "--answers", tmp_path / "a.jsonl"]
    done = gristmill("compare", taught, copy, *given)
    assert done.code == 2 and f"prompt 2 cannot be put to {taught}: the prompt has" in done.err


def test_copies_of_one_name_keep_their_answers_apart(tmp_path):
    from gristmill.cli.compare import _answers_file

    names = [
        _answers_file("full", f"{place}/Llama-3.1-8B{kind}").name
        for place in "ab"
        for kind in ("-gptq", "-awq", ".gguf")
    ]
    assert len(set(names)) == 6 and names[0].startswith("blind-Llama-3.1-8B-gptq-")
    assert _answers_file("full", "./a/b").name == _answers_file("full", "a/b").name


def test_by_numbers(gristmill, taught, copy, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Return the n largest elements of a dataset. " * 300)
    done = gristmill("compare", taught, copy, "--text", text, "--json")
    told = json.loads(done.out)
    assert done.code == 0 and told["distance"]["kl_mean"] > 0 and told["bytes_ratio"] < 1
    assert "perplexity" in gristmill("compare", taught, copy, "--text", text).out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompts", "p.txt"], "are for a comparison by you: add --blind"),
        (["--blind", "--text", "p.txt"], "--text is for a comparison by numbers"),
        (["--blind", "--prompts", "none.txt"], "there is no file none.txt"),
    ],
)
def test_wrong_requests(gristmill, taught, copy, arguments, says):
    done = gristmill("compare", taught, copy, *arguments)
    assert done.code == 2 and says in done.err, done.err


def test_prompts_are_read_from_jsonl_of_several_kinds(tmp_path):
    from gristmill.cli.compare import _read_prompts

    file = tmp_path / "p.jsonl"
    rows = [
        {"prompt": "a"},
        {"turns": ["b", "c"]},
        {"messages": [{"role": "user", "content": "d"}]},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert _read_prompts(file, "none") == ["a", "b", "d"]
    odd = "one\u2028two\x85three"
    file.write_text(json.dumps({"prompt": odd}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert _read_prompts(file, "none") == [odd]
    plain = tmp_path / "p.txt"
    plain.write_text(f"{odd}\r\ntwo\n", encoding="utf-8")
    assert _read_prompts(plain, "none") == [odd, "two"]
    file.write_text('{"question": 1}')
    with pytest.raises(RequestError, match="line 1 has no"):
        _read_prompts(file, "none")
