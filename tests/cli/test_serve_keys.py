"""`gristmill serve keys`, and that `serve` is still a verb of its own."""

from __future__ import annotations

import json
from pathlib import Path

from gristmill.cli.main import overview
from gristmill.serve.keys import KeyFile, read_keys


def test_a_key_is_made_shown_once_listed_and_removed(gristmill, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    made = gristmill("serve", "keys", "add", "alice", "--file", file)
    assert made.code == 0
    found = KeyFile(file).find(made.out.strip().encode())
    assert found is not None and found.name == "alice" and found.models is None
    limits = ["--requests-per-minute", 60, "--tokens-per-minute", 1000, "--concurrent", 2]
    made = gristmill(
        *("serve", "keys", "add", "bob", "--file", file, "--json"),
        *limits,
        *("--model", "a", "--model", "b"),
    )
    told = json.loads(made.out)
    bob = KeyFile(file).find(told["key"].encode())
    assert bob is not None and bob.models == ("a", "b")
    assert (bob.requests_per_minute, bob.tokens_per_minute, bob.concurrent) == (60, 1000, 2)

    listed = gristmill("serve", "keys", "list", "--file", file)
    assert "alice" in listed.out and "no limits" in listed.out
    assert "60 requests and 1,000 tokens a minute; 2 requests at once; only a, b" in listed.out
    told = json.loads(gristmill("serve", "keys", "list", "--file", file, "--json").out)
    assert [key["name"] for key in told["keys"]] == ["alice", "bob"]
    assert bob.hash not in json.dumps(told)

    assert gristmill("serve", "keys", "remove", "alice", "--file", file).code == 0
    assert [key.name for key in read_keys(file)] == ["bob"]


def test_what_cannot_be_done_is_told(gristmill, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    gristmill("serve", "keys", "add", "alice", "--file", file)
    taken = gristmill("serve", "keys", "add", "alice", "--file", file)
    assert taken.code == 2 and "already" in taken.err
    unknown = gristmill("serve", "keys", "remove", "bob", "--file", file)
    assert unknown.code == 2 and "no key bob" in unknown.err
    none = gristmill("serve", "keys", "add", "bob", "--file", file, "--concurrent", 0)
    assert none.code == 2 and "--concurrent" in none.err


def test_help_of_both(gristmill) -> None:
    assert "serve keys" in overview()
    serve = gristmill("serve", "--help").out
    assert "MODEL" in serve and "--api-key-file" in serve and "--drain-seconds" in serve
    keys = gristmill("serve", "keys", "--help").out
    assert "gristmill serve keys" in keys and all(w in keys for w in ("add", "list", "remove"))


def test_serving_with_a_broken_key_file_is_refused_before_the_model_loads(
    gristmill, tmp_path: Path
) -> None:
    file = tmp_path / "keys.jsonl"
    file.write_text("{")
    got = gristmill("serve", tmp_path / "no-model", "--port", 0, "--api-key-file", file)
    assert got.code == 2 and f"{file}, line 1" in got.err
