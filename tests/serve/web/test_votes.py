"""Votes become preferences that the project's own reader, and so its training, takes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gristmill.align.pairs import encode, read_pairs
from tests.tiny_model import random_model

PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say {}."}]


def ballot(first="small", second="large", choice="first", texts=("good", "bad"), **more):
    answers = [{"model": m, "text": t} for m, t in zip((first, second), texts, strict=True)]
    return {"prompt": PROMPT, "answers": answers, "choice": choice, "blind": True, **more}


def vote(client, body):
    return client.post("/app/votes", json=body)


def test_exported_votes_are_preferences_to_train_on(client, tmp_path):
    given = [
        ballot(texts=("yes\u2028 naïve", "no"), reason="clearer", annotator="ann"),
        ballot(choice="second", texts=("meh", 'fine "quoted"\n')),
        ballot(choice="tie"),
        ballot(choice="bad"),
        ballot(choice="bad"),
    ]
    assert [vote(client, body).json() for body in given] == [{"votes": n} for n in range(1, 6)]
    response = client.get("/app/votes/export")
    assert response.headers["x-gristmill-left-out"] == "3"
    assert 'filename="preferences.jsonl"' in response.headers["content-disposition"]
    path = tmp_path / "preferences.jsonl"
    path.write_bytes(response.content)
    rows = read_pairs(path)
    assert rows == [
        {
            "prompt": PROMPT,
            "chosen": [{"role": "assistant", "content": "yes\u2028 naïve"}],
            "rejected": [{"role": "assistant", "content": "no"}],
            "annotator": "ann",
            "reason": "clearer",
            "models": {"chosen": "small", "rejected": "large"},
        },
        {
            "prompt": PROMPT,
            "chosen": [{"role": "assistant", "content": 'fine "quoted"\n'}],
            "rejected": [{"role": "assistant", "content": "meh"}],
            "annotator": "anonymous",
            "reason": "",
            "models": {"chosen": "large", "rejected": "small"},
        },
    ]
    tokenizer = random_model().tokenizer
    pairs, too_long = encode(rows, tokenizer, 192)
    assert (len(pairs), too_long) == (2, 0)
    for pair, row in zip(pairs, rows, strict=True):
        for (ids, owned), side in ((pair.chosen, "chosen"), (pair.rejected, "rejected")):
            said = tokenizer.decode([i for i, mine in zip(ids, owned, strict=True) if mine])
            assert row[side][0]["content"] in said


def test_the_summary_counts_what_was_chosen_whoever_stood_first(client):
    rng = random.Random(0)
    wins, others, met = Counter(), Counter(), Counter()
    for _ in range(60):
        first, second = rng.sample(["a", "b", "c"], 2)
        choice = rng.choice(["first", "second", "tie", "bad"])
        vote(client, ballot(first, second, choice))
        pair = frozenset((first, second))
        met[pair] += 1
        if choice in ("first", "second"):
            wins[pair, first if choice == "first" else second] += 1
        else:
            others[pair, choice] += 1
    pairs = client.get("/app/votes/summary").json()["pairs"]
    assert [(p["a"], p["b"]) for p in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for p in pairs:
        pair = frozenset((p["a"], p["b"]))
        assert p["a_wins"] == wins[pair, p["a"]]
        assert p["b_wins"] == wins[pair, p["b"]]
        assert p["ties"] == others[pair, "tie"]
        assert p["bad"] == others[pair, "bad"]
        assert sum(p[k] for k in ("a_wins", "b_wins", "ties", "bad")) == met[pair]


def test_without_votes_there_is_nothing_to_export(client):
    response = client.get("/app/votes/export")
    assert (response.content, response.headers["x-gristmill-left-out"]) == (b"", "0")
    assert client.get("/app/votes/summary").json() == {"pairs": []}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (ballot(choice="third"), "choice"),
        (ballot(extra=1), "extra"),
        (ballot() | {"blind": "yes"}, "blind"),
        (ballot() | {"prompt": []}, "prompt"),
        (ballot() | {"prompt": [{"role": "tool", "content": "x"}]}, "prompt[0].role"),
        (ballot() | {"answers": ballot()["answers"][:1]}, "answers"),
        (ballot() | {"answers": ballot()["answers"] * 2}, "answers"),
        (ballot(texts=("x" * ((1 << 20) + 1), "y")), "answers[0].text"),
        (ballot(reason="x" * 4001), "reason"),
        (ballot(annotator="x" * 201), "annotator"),
        (ballot(first=""), "answers[0].model"),
    ],
)
def test_a_vote_that_is_none_is_refused_by_field(client, body, param):
    response = vote(client, body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert client.get("/app/votes/summary").json() == {"pairs": []}


def test_a_vote_larger_than_any_is_refused(client):
    assert (
        vote(
            client,
            ballot()
            | {"prompt": PROMPT * 200 + [{"role": "user", "content": "x" * (1 << 20)}] * 8},
        ).status_code
        == 413
    )
