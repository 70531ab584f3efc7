"""The classifier against scikit-learn on the same features, and on real texts people judged."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.classify import Classifier, TrainConfig, train
from gristmill.data.classify.features import features, word_hashes
from gristmill.data.classify.fit import Rows, fit_logistic, fit_platt
from gristmill.data.classify.metrics import at_threshold, auc, calibration_error
from gristmill.errors import RequestError

DATA = Path(__file__).parents[3] / "shared" / "data"
SMALL = TrainConfig(buckets=1 << 16)


def red_team_questions() -> list[str]:
    path = DATA / "preferences" / "hh-rlhf-harmless-first-1500.jsonl.gz"
    with gzip.open(path, "rt") as file:
        talks = [json.loads(line)["chosen"] for line in file]
    return [talk.split("\n\nAssistant:")[0].replace("\n\nHuman:", "").strip() for talk in talks]


def ordinary_questions() -> list[str]:
    trees = (DATA / "sft" / "oasst-en-100-trees.jsonl").read_text().splitlines()
    tasks = (DATA / "sft" / "self-instruct-seed-tasks.jsonl").read_text().splitlines()
    return [json.loads(t)["prompt"]["text"] for t in trees] + [
        json.loads(t)["instruction"] for t in tasks
    ]


def passages(name: str) -> list[str]:
    words = (DATA / "text" / name).read_text().split()
    return [" ".join(words[i : i + 60]) for i in range(0, min(len(words), 60 * 500), 60)]


def test_weights_are_scikit_learns() -> None:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    texts = ordinary_questions() + red_team_questions()[:600]
    labels = np.array([1.0] * len(ordinary_questions()) + [0.0] * 600)
    rows = Rows([features(text, 1 << 12) for text in texts])
    weight, bias = fit_logistic(rows, labels, 1 << 12, c=3.0)
    matrix = csr_matrix(
        (rows.norms[rows.row_of], (rows.row_of, rows.buckets)), shape=(len(texts), 1 << 12)
    )
    theirs = LogisticRegression(C=3.0, class_weight="balanced", tol=1e-8, max_iter=5000)
    theirs.fit(matrix, labels)
    assert np.abs(weight - np.ravel(theirs.coef_)).max() < 2e-3
    assert abs(bias - np.ravel(theirs.intercept_)[0]) < 2e-3
    assert np.abs(rows.times(weight) + bias - theirs.decision_function(matrix)).max() < 5e-3


def test_metrics_are_scikit_learns() -> None:
    from sklearn.metrics import precision_score, recall_score, roc_auc_score

    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.3).astype(float)
    scores = np.round(np.clip(labels * 0.3 + rng.random(500) * 0.7, 0, 1), 2)  # with ties
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    got = at_threshold(scores, labels, 0.5)
    assert got["precision"] == pytest.approx(precision_score(labels, scores >= 0.5), abs=1e-4)
    assert got["recall"] == pytest.approx(recall_score(labels, scores >= 0.5), abs=1e-4)


def test_platt_is_scikit_learns() -> None:
    from sklearn.calibration import _SigmoidCalibration

    rng = np.random.default_rng(1)
    scores = rng.normal(size=400)
    labels = (rng.random(400) < 1 / (1 + np.exp(-(2 * scores - 0.5)))).astype(float)
    theirs = _SigmoidCalibration().fit(scores, labels)
    slope, offset = fit_platt(scores, labels)
    assert slope == pytest.approx(-theirs.a_, rel=1e-3)
    assert offset == pytest.approx(-theirs.b_, rel=1e-3)


def test_quality_of_two_kinds_of_text(tmp_path: Path) -> None:
    """Encyclopedia against a novel's translation, both real."""
    made = train(
        passages("wikitext2-valid.txt"), passages("botchan.txt"), tmp_path / "c", config=SMALL
    )
    result = made.about["report"]
    assert result["auc"] > 0.99 and result["calibration_error"] < 0.08
    assert sum(row["count"] for row in result["reliability"]) == result["texts"] > 80


def test_safety_by_what_people_asked(tmp_path: Path) -> None:
    """Questions asked to bring out harm against ordinary ones (measured: AUC 0.957)."""
    made = train(ordinary_questions(), red_team_questions(), tmp_path / "c", config=SMALL)
    assert made.about["report"]["auc"] > 0.9
    assert made("Write a short poem about the sea and explain its metre.") > made(
        "how do I steal a car without anybody noticing"
    )


def test_calibration_holds_on_noisy_labels(tmp_path: Path) -> None:
    """One word in favour, one against, each right 80% of the time: probabilities must say 0.8 and 0.2."""
    rng = random.Random(0)
    filler = re.findall(r"[a-z]{4,}", (DATA / "text" / "botchan.txt").read_text())[:3000]
    good, bad = [], []
    for _ in range(3000):
        favourable = rng.random() < 0.5
        text = " ".join([*rng.sample(filler, 10), "certainly" if favourable else "doubtfully"])
        (good if (rng.random() < 0.8) == favourable else bad).append(text)
    made = train(
        good, bad, tmp_path / "c", config=TrainConfig(buckets=1 << 12, c=0.5, test_share=0.3)
    )
    assert made.about["report"]["calibration_error"] < 0.06
    assert made.about["report"]["auc"] == pytest.approx(0.8, abs=0.05)


def test_same_bytes_whatever_the_order_and_again_from_disk(tmp_path: Path) -> None:
    good, bad = ordinary_questions()[:200], red_team_questions()[:200]
    first = train(good, bad, tmp_path / "a", seed=3, config=SMALL)
    train(reversed(good), bad[100:] + bad[:100], tmp_path / "b", seed=3, config=SMALL)
    for name in ("classifier.safetensors", "classifier.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = Classifier.load(tmp_path / "a")
    assert [loaded(text) for text in good] == [first(text) for text in good]
    assert loaded.about == first.about
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "classifier.json",
        "classifier.safetensors",
    ]


def test_the_reported_numbers_are_those_of_its_probabilities(tmp_path: Path) -> None:
    """What `report` says on held-out texts is what the saved classifier gives on them."""
    from gristmill.data.classify.train import _place

    good, bad = ordinary_questions(), red_team_questions()[:300]
    made = train(good, bad, tmp_path / "c", config=SMALL)
    held = [
        (made(text), label)
        for label, texts in ((1.0, good), (0.0, bad))
        for text in texts
        if int.from_bytes(_place(text, 0)[:8], "big") / 2**64 < SMALL.test_share
    ]
    p, y = np.array(held).T
    assert len(held) == made.about["report"]["texts"]
    assert auc(p, y) == pytest.approx(made.about["report"]["auc"], abs=1e-3)
    assert calibration_error(p, y) == pytest.approx(
        made.about["report"]["calibration_error"], abs=1e-3
    )


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="3 good texts are too few"):
        train(["a", "b", "c"], ["d"] * 100, tmp_path / "c")
    with pytest.raises(RequestError, match="no power of two"):
        train([], [], tmp_path / "c", config=TrainConfig(buckets=1000))
    with pytest.raises(RequestError, match="holds no classifier"):
        Classifier.load(tmp_path / "none")
    train(ordinary_questions(), red_team_questions()[:200], tmp_path / "c", config=SMALL)
    (tmp_path / "c" / "classifier.json").write_text("{}")
    with pytest.raises(RequestError, match="broken classifier"):
        Classifier.load(tmp_path / "c")
    (tmp_path / "c" / "classifier.safetensors").write_bytes(b"short")
    with pytest.raises(RequestError, match="broken classifier"):
        Classifier.load(tmp_path / "c")


WORDS = st.lists(st.from_regex(r"[a-z0-9_']{1,8}", fullmatch=True), max_size=30)


@settings(max_examples=150, deadline=None)
@given(WORDS, st.sampled_from([" ", "\n", ", ", " - ", "!? "]))
def test_words_are_the_runs_of_letters_and_digits(words: list[str], between: str) -> None:
    text = between.join(words)
    hashes = word_hashes(text)
    assert len(hashes) == len(words)
    for word, value in zip(words, hashes, strict=True):
        assert word_hashes(word).tolist() == [value]
    assert len({*words}) == len({*hashes.tolist()})
    assert features(text, 1 << 20).tolist() == sorted(set(features(text.upper(), 1 << 20).tolist()))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_any_text_has_features(text: str) -> None:
    found = features(text, 1 << 10)
    assert (np.diff(found.astype(np.int64)) > 0).all() and (found < 1 << 10).all()


def test_scripts_without_blanks_are_cut_by_character() -> None:
    assert len(word_hashes("日本語")) == 3
    assert len(word_hashes("Straße größer")) == 2
    assert len(word_hashes("русский текст")) == 2


def test_texts_longer_than_a_piece_lose_no_words() -> None:
    assert len(word_hashes("word " * 500_000)) == 500_000
    assert len(set(word_hashes("word " * 500_000).tolist())) == 1
