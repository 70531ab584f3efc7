"""A layout that is wrong on purpose is named as what it is; a right one passes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gristmill.files import read_jsonl
from gristmill.train.parallel import layout as layouts
from gristmill.train.parallel import prove
from gristmill.train.parallel.layout import Layout
from gristmill.train.parallel.leaves import Leaf
from gristmill.train.pretrain import PretrainConfig, check, work
from gristmill.train.windows import Windows
from tests.train.corpus import tiny_pretrain
from tests.train.parallel.processes import run_ranks

WRONG = "model.layers.1.self_attn.q_proj.weight"


def rows(losses: list[float], norms: list[float]) -> list[dict[str, float]]:
    made = zip(losses, norms, strict=True)
    return [{"step": n, "loss": a, "grad_norm": b} for n, (a, b) in enumerate(made, 1)]


@pytest.mark.parametrize(
    ("loss", "norm", "step", "meaning"),
    [
        ([6.0, 5.0, 4.0], [2.0, 2.0, 2.0], None, ""),
        ([6.00001, 5.0, 4.0], [2.0, 2.00001, 2.0], None, ""),  # below the tolerance
        ([6.001, 5.0, 4.0], [2.0, 2.0, 2.0], 1, "first weights"),
        ([6.0, 5.0, 4.0], [4.0, 2.0, 2.0], 1, "2 times too large"),
        ([6.0, 5.0, 4.0], [0.5, 2.0, 2.0], 1, "4 times too small"),
        ([6.0, 5.0, 4.0], [2.3, 2.0, 2.0], 1, "the backward pass"),
        ([6.0, 5.1, 4.0], [2.0, 2.0, 2.0], 2, "first update"),
        ([6.0, 5.0, 4.0], [2.0, 2.1, 2.0], 2, "the backward pass"),
        ([6.0, 5.0, 4.0], [2.0, 2.0, 2.1], 3, "optimizer"),
        ([6.0, math.nan, 4.0], [2.0, 2.0, 2.0], 2, "first update"),
        ([6.0, 5.0, 4.0], [math.nan, 2.0, 2.0], 1, "gradients"),
    ],
)
def test_what_a_first_difference_means(loss, norm, step, meaning):
    compared = prove.compare(rows([6.0, 5.0, 4.0], [2.0, 2.0, 2.0]), rows(loss, norm))
    first = prove.first_difference(compared)
    assert (first.step if first else None) == step
    assert first is None or meaning in prove.meaning(first)


def settings(steps: int, layout: Layout) -> PretrainConfig:
    return tiny_pretrain(warm_start="none", evaluations=0, tokens=steps * 256, layout=layout)


def train_here(
    rank: int, broken: str, config: PretrainConfig, inputs: dict[str, Path], out: Path
) -> None:
    """A process of the layout, with gradients that are wrong."""
    right = Leaf.take_gradient

    def wrong(leaf: Leaf) -> None:
        right(leaf)
        if broken in leaf.name and leaf.local.grad is not None:
            leaf.local.grad.mul_(2)

    setattr(Leaf, "take_gradient", wrong)  # noqa: B010  this process lives for the test alone
    work(config, inputs, out, layouts.build(config.layout), log_every=1)


@pytest.mark.parametrize("broken", ["", "lm_head.weight", WRONG])
def test_a_layout_with_wrong_gradients(tmp_path, broken):
    inputs = prove.made_up_corpus(tmp_path / "corpus", 512, 20_000)
    config = settings(2, Layout(dp=2))
    alone = config.model_copy(update={"layout": Layout()})
    for name in ("alone", "layout"):
        (tmp_path / name).mkdir()
    work(alone, inputs, tmp_path / "alone", None, log_every=1)
    run_ranks(train_here, 2, broken, config, inputs, tmp_path / "layout")
    made = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("alone", "layout")]
    first = prove.first_difference(prove.compare(*made))
    (worst, most), (_, second) = list(prove.gradients_differ(tmp_path).items())[:2]
    if broken == WRONG:  # hardly there, for what it leads to begins at zero: losses tell nothing
        assert first is None and worst == WRONG
        assert most > 0.5 and second < prove.NAMED_TOLERANCE
        return
    assert first is not None and first.step == 1
    if broken:
        assert "the backward pass" in prove.meaning(first) and worst == broken
    else:
        assert "normalization of gradients: they are 2 times too large" in prove.meaning(first)


@pytest.mark.parametrize(
    "layout",
    [
        dict(dp=4),
        dict(replicas=2, dp=2, tp=4),
        dict(tp=2, cp=2),
        dict(cp=3),
        dict(tp=3, dp=3),
        dict(pp=4),
        dict(pp=2, schedule="interleaved-1f1b"),
        dict(dp=4, ep=4),
        dict(dp=6, ep=3),
    ],
)
def test_what_is_shrunk_still_fits_the_layout_and_is_of_the_same_kind(layout):
    experts = 12 if "ep" in layout else 0
    config = PretrainConfig(
        num_layers=24,
        hidden_size=2304,
        num_heads=36,
        num_kv_heads=12,
        head_dim=64,
        intermediate_size=9216,
        num_experts=experts,
        experts_per_token=4,
        qk_norm=False,
        context=3072,
        max_seq_len=8192,
        batch_tokens=3072 * 576,
        micro_batches=16,
        tokens=10**10,
        warm_start="none",
        documents="apart",
        optimizer="adamw",
        ema_decay=0.9,
        z_loss=1e-4,
        layout=Layout(**layout),
    )
    check(config)
    small = prove.shrunk(config)
    check(small)
    assert small.batch_tokens * 30 < config.batch_tokens and small.hidden_size < 200
    kept = ("qk_norm", "tie_embeddings", "documents", "optimizer", "ema_decay", "z_loss", "layout")
    assert all(getattr(small, name) == getattr(config, name) for name in kept)
    assert bool(small.num_experts) == bool(experts) and small.num_heads > small.num_kv_heads


def test_the_made_up_corpus_is_the_same_every_time_and_can_be_trained_on(tmp_path):
    one = prove.made_up_corpus(tmp_path / "one", 512, 8_000)["tokens"]
    two = prove.made_up_corpus(tmp_path / "two", 512, 8_000)["tokens"]
    windows = [Windows(place, "train", 32, {}, 0) for place in (one, two)]
    first, second = (w.rows(0, 200) for w in windows)
    assert (first == second).all() and first.max() < 512 and windows[0].total == 8_000
    [start] = np.unique(first[first >= 256])
    assert 100 < (first == start).sum() < 500  # about every 24th begins a document
