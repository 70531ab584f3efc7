"""Mixtures by regression: known truths are found, leave-one-out is what it says, and a real n-gram proxy gains."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.data.mix import draws, mixture
from gristmill.data.regmix import (
    FORMS,
    leave_one_out,
    measure,
    propose,
    sample_mixtures,
)
from gristmill.errors import RequestError

TEXTS = Path(__file__).parents[2] / "../shared/data/text"
SOURCES = ("a", "b", "c")
SIZES = {"a": 5.0, "b": 3.0, "c": 2.0}


def losses_of(w: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """3 + Σ (w - best)²: the lowest where w is `best`."""
    exact = 3 + ((w - np.array([0.5, 0.2, 0.3])) ** 2).sum(1)
    return exact + noise * np.random.default_rng(1).standard_normal(len(w))


def test_a_known_optimum_is_found_and_lies_in_its_interval():
    w = sample_mixtures(SIZES, 64, seed=0)
    exact = propose(w, losses_of(w), SOURCES)
    assert exact.form == "quadratic" and abs(exact.loss - 3) < 1e-4
    assert max(abs(np.array(list(exact.weights.values())) - [0.5, 0.2, 0.3])) < 5e-3
    noisy = propose(w, losses_of(w, 0.01), SOURCES)
    for name, true in zip(SOURCES, (0.5, 0.2, 0.3), strict=True):
        assert noisy.low[name] <= true <= noisy.high[name], noisy
        assert abs(noisy.weights[name] - true) < 0.06
        assert noisy.high[name] - noisy.low[name] < 0.25
    assert noisy.loss_low <= 3 <= noisy.loss_high
    assert noisy.errors["quadratic"] < 0.5 * noisy.spread


@pytest.mark.parametrize("name", list(FORMS))
def test_the_form_that_made_the_losses_is_chosen(name):
    rng = np.random.default_rng(4)
    w = sample_mixtures(SIZES, 60, seed=1)
    design = FORMS[name](w)
    y = design @ rng.standard_normal(design.shape[1]) + 1e-3 * rng.standard_normal(len(w))
    found = propose(w, y, SOURCES)
    # a form that holds another may tie with it, never lose to one that cannot say it
    assert found.errors[name] < 3e-3
    assert found.errors[found.form] <= found.errors[name]
    if name != "linear":
        assert found.form == name


def test_leave_one_out_is_leaving_one_out():
    w = sample_mixtures(SIZES, 20, seed=2)
    rng = np.random.default_rng(0)
    y, trust = rng.standard_normal(20), rng.uniform(0.1, 1, 20)
    for form in FORMS.values():
        design = form(w)
        left = []
        for i in range(20):
            rest = np.delete(np.arange(20), i)
            root = np.sqrt(trust[rest])
            fit = np.linalg.lstsq(design[rest] * root[:, None], y[rest] * root, rcond=None)[0]
            left.append(y[i] - design[i] @ fit)
        expected = np.sqrt((trust * np.square(left)).sum() / trust.sum())
        assert leave_one_out(design, y, trust) == pytest.approx(expected, 1e-3)


@given(st.integers(2, 6), st.integers(0, 20), st.integers(0, 99))
def test_mixtures_lie_on_the_simplex_and_more_begin_with_the_same(sources, count, seed):
    sizes = {str(i): 1.0 + i for i in range(sources)}
    w = sample_mixtures(sizes, count, seed)
    assert w.shape == (count, sources) and (w >= 0).all()
    assert np.allclose(w.sum(1), 1)
    assert (sample_mixtures(sizes, count + 3, seed)[:count] == w).all()


def test_mixtures_average_to_the_sources_own_proportions():
    w = sample_mixtures(SIZES, 4000, seed=0)
    assert abs(w.mean(0) - [0.5, 0.3, 0.2]).max() < 0.02
    assert (w.max(1) > 0.95).mean() > 0.02  # corners are tried


def test_wrong_requests():
    with pytest.raises(RequestError, match="two sources"):
        sample_mixtures({"a": 1.0}, 3, 0)
    w = sample_mixtures(SIZES, 3, seed=0)
    with pytest.raises(RequestError, match="too few"):
        propose(w, losses_of(w), SOURCES)
    with pytest.raises(RequestError, match="row for each loss"):
        propose(w, losses_of(w)[:2], SOURCES)
    with pytest.raises(RequestError, match="mixture 0 has loss nan"):
        measure(w, SOURCES, lambda _: float("nan"))


# A real proxy: character trigrams, interpolated, trained on what `mixture` and `draws` give of two corpora.


def documents(name: str) -> list[str]:
    path = TEXTS / name
    assert path.is_file(), f"{path} is absent; it is the test data of this project"
    text = path.read_text(encoding="utf-8")[:300_000].lower()
    return [text[i : i + 2000] for i in range(0, len(text), 2000)]


@pytest.fixture(scope="module")
def corpora() -> dict[str, dict[str, list[str]]]:
    """source -> train and heldout documents."""
    found = {
        "plays": documents("tinyshakespeare.txt"),
        "articles": documents("wikitext2-valid.txt"),
    }
    return {
        name: {"train": every[: len(every) * 4 // 5], "heldout": every[len(every) * 4 // 5 :]}
        for name, every in found.items()
    }


def trained(corpora, weights: dict[str, float], budget: int = 120_000) -> Counter[str]:
    """Counts of all 1- to 3-grams of what the mixture draws."""
    sizes = {name: sum(map(len, corpora[name]["train"])) for name in corpora}
    shares = mixture(sizes, budget, weights=weights)
    counts: Counter[str] = Counter()
    for name, share in shares.items():
        train = corpora[name]["train"]
        times = draws(
            [f"{name}{i}" for i in range(len(train))], [*map(len, train)], share.tokens, 0
        )
        for text, often in zip(train, times.tolist(), strict=True):
            for _ in range(often):
                for n in (1, 2, 3):
                    counts.update(text[i : i + n] for i in range(len(text) - n + 1))
    return counts


def loss(counts: Counter[str], texts: list[str]) -> float:
    """Bits per character of a third each of trigram, bigram and unigram, over a floor of a thousandth."""
    total = sum(often for gram, often in counts.items() if len(gram) == 1)
    grams = Counter(text[i : i + 3] for text in texts for i in range(len(text) - 2))
    bits = 0.0
    for gram, often in grams.items():
        p = 0.0005
        p += 0.2 * counts[gram[2]] / total
        p += 0.3 * counts[gram[1:]] / max(1, counts[gram[1]])
        p += 0.4 * counts[gram] / max(1, counts[gram[:2]])
        bits -= often * np.log2(p)
    return bits / grams.total()


def test_a_real_proxy_gains_on_its_target(corpora):
    """Target: held-out text that is three parts articles and one part plays; the corpora are of equal size."""
    plays, articles = corpora["plays"]["heldout"], corpora["articles"]["heldout"]
    target = plays[:8] + articles[:24]

    def proxy(weights: dict[str, float]) -> float:
        return loss(trained(corpora, weights), target)

    sources = ("plays", "articles")
    w = sample_mixtures({"plays": 1, "articles": 1}, 20, seed=0)
    y = measure(w, sources, proxy)
    found = propose(w, y, sources)
    assert found.errors[found.form] < 0.3 * found.spread, found
    reached = proxy(found.weights)
    # better than either alone and than equal parts, near the best of a fine grid, and as predicted
    assert reached < proxy({"plays": 1, "articles": 1}) - 0.01
    assert reached < min(proxy({"plays": 1, "articles": 0}), proxy({"plays": 0, "articles": 1}))
    grid = [proxy({"plays": p, "articles": 1 - p}) for p in (0.1, 0.15, 0.2, 0.25, 0.3, 0.35)]
    assert reached < min(grid) + 0.002
    assert found.loss_low - 0.002 < reached < found.loss_high + 0.002
    assert 0.65 < found.weights["articles"] < 0.85
