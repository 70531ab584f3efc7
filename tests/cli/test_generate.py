"""generate: several answers, forms, drafts, and batches of lines."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import subprocess
import sys

import pytest

from gristmill.engine import Engine
from gristmill.lm import Request, SamplingParams
from tests.tiny_model import LESSONS, QUESTIONS, taught_model


def drawn(prompt: str, **params) -> str:
    (completion,) = Engine(taught_model()).generate([Request(prompt, SamplingParams(**params))])
    return completion.text


def test_a_seed_is_chosen_and_makes_the_text_again(gristmill, taught) -> None:
    first = gristmill("generate", taught, "the", "--max-tokens", 12)
    seed = re.search(r"seed (\d+)", first.err)[1]
    again = gristmill("generate", taught, "the", "--max-tokens", 12, "--seed", seed)
    assert again.out == first.out
    assert "seed" not in gristmill("generate", taught, "x", "--temperature", 0).err


def test_n_answers(gristmill, taught) -> None:
    options = ["--n", 3, "--seed", 5, "--max-tokens", 8]
    shown = gristmill("generate", taught, "the", *options)
    found = json.loads(gristmill("generate", taught, "the", *options, "--json").out)
    texts = [found["text"], *(a["text"] for a in found["alternatives"])]
    assert shown.out == "".join(f"--- {i} of 3 ---\n{t}\n" for i, t in enumerate(texts, 1))
    assert len(set(texts)) > 1 and texts[0] == drawn("the", seed=5, max_tokens=8)


def test_the_text_has_the_form_that_was_asked_for(gristmill, taught, tmp_path) -> None:
    for seed in range(3):
        chosen = gristmill(
            "generate", taught, "Is it? ", "--choice", "yes", "--choice", "no", "--seed", seed
        )
        assert chosen.out in ("yes\n", "no\n")
    matched = gristmill("generate", taught, "x", "--regex", "[0-9]{3}-[a-f]{2}")
    assert re.fullmatch("[0-9]{3}-[a-f]{2}\n", matched.out)
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["a", "b"]}')
    assert json.loads(gristmill("generate", taught, "x", "--json-schema", schema).out) in ("a", "b")
    lark = tmp_path / "grammar.lark"
    lark.write_text('start: "left" | "right"')
    assert gristmill("generate", taught, "x", "--grammar", lark).out in ("left\n", "right\n")


def test_a_form_that_the_limit_cuts_is_told(gristmill, taught) -> None:
    """Plain text may be cut; half an object is not what was asked for, while "12" is [0-9]+ also at the limit."""
    options = ["--max-tokens", 2, "--temperature", 0]
    assert gristmill("generate", taught, "x", *options).code == 0
    cut = gristmill("generate", taught, "x", "--json-object", *options)
    assert cut.code == 1 and cut.out.startswith("{") and "cut before it had the form" in cut.err
    as_json = gristmill("generate", taught, "x", "--json-object", *options, "--json")
    found = json.loads(as_json.out)  # one document
    assert as_json.code == 1 and (found["finish_reason"], found["complete"]) == ("length", False)
    whole = gristmill("generate", taught, "x", "--regex", "[0-9]+", *options, "--json")
    found = json.loads(whole.out)
    assert whole.code == 0 and (found["finish_reason"], found["complete"]) == ("length", True)
    lines = '{"prompt": "x", "json_object": true}\nplain'
    batch = gristmill("generate", taught, "--batch", *options, stdin=lines)
    assert batch.code == 1 and "line 1: cut before it had the form" in batch.err


def test_drafts_change_nothing_but_speed(gristmill, taught) -> None:
    options = ["--temperature", 0, "--max-tokens", 60, "--ignore-eos"]
    plain = gristmill("generate", taught, LESSONS[0][0], *options)
    drafted = gristmill("generate", taught, LESSONS[0][0], *options, "--draft", "ngram")
    helped = gristmill("generate", taught, LESSONS[0][0], *options, "--draft", taught)
    assert drafted.out == helped.out == plain.out
    assert "of the examined drafts kept" in helped.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a PROMPT"),
        (["x", "--batch"], "leave PROMPT out"),
        (["x", "--regex", "a", "--choice", "b"], "--regex and --choice exclude each other"),
        (["x", "--json-schema", "nowhere.json"], "there is no file nowhere.json"),
        (["x", "--regex", "["], "regex"),
        (["x", "--n", "0"], "n must be 1 to 1024"),
        (
            ["x", "--draft", "nowhere"],
            "takes ngram, early-exit or a model, and there is no model at",
        ),
        (["x", "--draft", "nogram"], 'there is no model at nogram. Did you mean "ngram"?'),
    ],
)
def test_wrong_requests(gristmill, taught, arguments, message) -> None:
    result = gristmill("generate", taught, *arguments)
    assert result.code == 2 and not result.out
    assert message in result.err and "Traceback" not in result.err


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_batch_answers_every_line_in_order(gristmill, taught) -> None:
    lines = [
        QUESTIONS[0],
        json.dumps({"prompt": "a\nb", "max_tokens": 3, "id": "mine", "stop": "zzz"}),
        json.dumps({"messages": [{"role": "user", "content": QUESTIONS[1]}], "max_tokens": 60}),
        json.dumps({"prompt": "the", "temperature": 1.0, "seed": 7, "n": 2, "logprobs": 1}),
    ]
    stdin = "\n\n".join(lines)  # empty lines are passed over, and counted
    options = ["--batch", "--temperature", 0, "--seed", 1, "--max-tokens", 10]
    result = gristmill("generate", taught, *options, stdin=stdin)
    assert result.code == 0 and "4 answers" in result.err and "tokens/s" in result.err
    first, second, third, fourth = rows(result.out)
    assert [row["line"] for row in (first, second, third, fourth)] == [1, 3, 5, 7]
    assert first["prompt"] == QUESTIONS[0]
    assert first["text"] == drawn(QUESTIONS[0], temperature=0.0, max_tokens=10)
    assert (second["id"], second["output_tokens"]) == ("mine", 3)
    assert third["text"] == LESSONS[1][1]
    assert fourth["text"] == drawn("the", seed=7, max_tokens=10) and fourth["seed"] == 7
    assert len(fourth["alternatives"]) == 1 and len(fourth["logprobs"][0]["top"]) == 1
    assert "".join(token["token"] for token in fourth["logprobs"]) == fourth["text"]
    assert "token" in fourth["logprobs"][0]["top"][0] and "seed" not in first
    whole = gristmill("generate", taught, "-", *options, "--json", stdin=stdin)
    assert json.loads(whole.out)["answers"][2] == third


def test_a_bad_line_is_told_and_the_others_go_on(gristmill, taught) -> None:
    bad = {
        2: (b'{"promt": "x"}', 'there is no key "promt". Did you mean "prompt"?'),
        3: (b"{oh", "none"),
        4: (b"\xff\xfe", "UTF-8"),
        5: (b'{"prompt": "x", "temperature": "hot"}', "temperature must be a number"),
        6: (b'{"prompt": "x", "top_p": 0}', "top_p must be above 0"),
        7: (b"word " * 400, "384"),
        8: (b'{"prompt": "x", "messages": []}', "not both"),
        9: (b'{"messages": [{"role": "cook", "content": "x"}]}', "messages must be"),
        10: (b'{"prompt": "x", "seed": true}', "seed must be an integer"),
    }
    stdin = b"\n".join([b"good", *(line for line, _ in bad.values()), b"good"])
    result = gristmill("generate", taught, "--batch", "--max-tokens", 3, stdin=stdin)
    assert result.code == 2 and "Traceback" not in result.err
    found = rows(result.out)
    assert [row["line"] for row in found] == list(range(1, 12))
    assert [row["line"] for row in found if "text" in row] == [1, 11]
    for number, (_, message) in bad.items():
        assert message in found[number - 1]["error"]
        assert f"line {number}: " in result.err


def test_a_bad_line_keeps_its_name(gristmill, taught) -> None:
    lines = [
        '{"id": 5, "promt": "x"}',
        '{"id": "\\udc00", "prompt": "\\ud800"}',
        '{"id": 7, "prompt": 1}',
    ]
    result = gristmill("generate", taught, "--batch", stdin="\n".join(lines))
    found = rows(result.out)
    assert [row["id"] for row in found] == [5, "\udc00", 7] and found[1]["prompt"] == "\ud800"
    assert all("error" in row for row in found)
    assert "0 answers, 0 tokens" in result.err and "3 of 3 lines were bad" in result.err


def test_a_line_sets_its_form(gristmill, taught) -> None:
    forms = [
        ({"json_schema": {"enum": ["a", "b"]}}, '"[ab]"'),
        ({"json_object": True}, r"(?s)\{.*"),  # this model may never close it
        ({"regex": "[0-9]{3}"}, "[0-9]{3}"),
        ({"grammar": 'start: "left" | "right"'}, "left|right"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"choice": None, "max_tokens": 1}, "(?s).*"),  # lifts the command's own
        ({}, "maybe"),
    ]
    lines = "\n".join(json.dumps({"prompt": "x", **form}) for form, _ in forms)
    options = ["--batch", "--choice", "maybe", "--seed", 1, "--max-tokens", 300]
    result = gristmill("generate", taught, *options, stdin=lines)
    found = rows(result.out)
    assert result.code == (0 if found[1]["complete"] else 1)
    for (_, pattern), row in zip(forms, found, strict=True):
        assert re.fullmatch(pattern, row["text"]), row
    assert ["complete" in row for row in found] == [True] * 5 + [False, True]
    wrong = [
        ({"regex": "a", "choice": "b"}, "regex and choice exclude each other"),
        ({"json_schema": "a"}, "json_schema must be an object, not 'a'"),
        ({"json_object": 1}, "json_object must be true or false"),
        ({"choice": [1]}, "choice needs strings"),
        ({"regex": "["}, "regex"),
    ]
    lines = "\n".join(json.dumps({"prompt": "x", **form}) for form, _ in wrong)
    result = gristmill("generate", taught, "--batch", stdin=lines)
    for (_, message), row in zip(wrong, rows(result.out), strict=True):
        assert message in row["error"]


def test_json_and_a_line_of_a_batch_have_one_shape(gristmill, taught) -> None:
    options = ["--seed", 4, "--max-tokens", 5, "--logprobs", 2, "--n", 2]
    alone = json.loads(gristmill("generate", taught, "é", *options, "--json").out)
    (line,) = rows(gristmill("generate", taught, "--batch", *options, stdin="é").out)
    assert {"model": alone.pop("model"), "params": alone.pop("params")}
    assert alone == {key: value for key, value in line.items() if key not in ("line", "prompt")}


def test_input_that_begins_with_a_byte_order_mark(gristmill, taught) -> None:
    stdin = codecs.BOM_UTF8 + b'{"prompt": "x", "id": 1}\r\ny'
    result = gristmill("generate", taught, "--batch", "--max-tokens", 1, stdin=stdin)
    first, second = rows(result.out)
    assert (first["prompt"], first["id"], second["prompt"]) == ("x", 1, "y")
    options = ["--temperature", 0, "--max-tokens", 9]
    marked = gristmill("generate", taught, "-", *options, stdin=codecs.BOM_UTF8 + b"the")
    assert marked.out == gristmill("generate", taught, "the", *options).out


def test_input_that_is_not_utf8(gristmill, taught) -> None:
    result = gristmill("generate", taught, "-", stdin=b"good\nb\xe9d")
    assert result.code == 2 and not result.out
    assert "standard input: line 2 is not UTF-8 text: its byte 2 is 0xE9" in result.err


def test_a_long_batch_streams_in_order(gristmill, taught) -> None:
    """More lines than run at once; the first ones say most."""
    lines = [json.dumps({"prompt": f"{i}", "max_tokens": 12 if i < 5 else 1}) for i in range(200)]
    result = gristmill("generate", taught, "--batch", "--ignore-eos", stdin="\n".join(lines))
    found = rows(result.out)
    assert [row["prompt"] for row in found] == [str(i) for i in range(200)]
    assert [row["output_tokens"] for row in found] == [12] * 5 + [1] * 195


def test_answers_go_to_the_file_while_the_bar_is_on_the_terminal(taught, tmp_path) -> None:
    (tmp_path / "in").write_text("\n".join(map(str, range(20))))
    near, far = pty.openpty()
    command = [sys.executable, "-m", "gristmill.cli.main", "generate", str(taught), "--batch"]
    with (tmp_path / "in").open() as stdin, (tmp_path / "out").open("w") as stdout:
        options = ["--max-tokens", "20", "--ignore-eos"]
        env = os.environ | {"TERM": "xterm"}
        done = subprocess.run(
            [*command, *options], stdin=stdin, stdout=stdout, stderr=far, env=env, timeout=120
        )
    shown = os.read(near, 1 << 20).decode()
    os.close(near)
    os.close(far)
    assert done.returncode == 0 and len(rows((tmp_path / "out").read_text())) == 20
    assert "━" in shown and "20 answers, 400 tokens" in shown and '"text"' not in shown


def test_an_empty_batch(gristmill, taught) -> None:
    result = gristmill("generate", taught, "--batch", "--json")
    assert result.code == 0 and json.loads(result.out)["answers"] == []
