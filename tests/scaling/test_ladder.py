"""Ladders that keep to a budget and the target's shape, and sweeps that nothing stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gristmill.errors import RequestError, WorkError
from gristmill.files import read_json
from gristmill.model import meta_network
from gristmill.scaling import counted, plan_ladder, read_runs, train_ladder
from gristmill.scaling.sweep import runs_dir
from gristmill.train import PretrainConfig
from gristmill.train.dial import derive
from gristmill.train.pretrain import shape_of
from tests.train.corpus import VOCAB, corpus, tiny_pretrain

TARGET = derive("124M")
BIG = PretrainConfig(**TARGET["pretrain"])
BIG_VOCAB = TARGET["tokenizer"]["vocab_size"]


def test_n_is_what_a_token_is_multiplied_with() -> None:
    ladder = plan_ladder(BIG, BIG_VOCAB, 10**10, 1e17)
    for rung in (*ladder.rungs[:3], ladder.rungs[-1]):
        network = meta_network(shape_of(rung.config, BIG_VOCAB))
        sizes = {name: p.numel() for name, p in network.named_parameters()}
        table = sum(size for name, size in sizes.items() if "embed_tokens" in name)
        assert table and rung.total == sum(sizes.values())
        assert rung.params == rung.total - table == counted(rung.config, BIG_VOCAB)


def test_a_ladder_keeps_to_its_budget() -> None:
    for flops in (1e15, 1e17):
        ladder = plan_ladder(BIG, BIG_VOCAB, 10**10, flops, rates=(0.5, 2.0))
        assert 0.9 * flops < ladder.flops <= flops
        assert not ladder.warnings
        budgets = sorted({rung.budget for rung in ladder.rungs})
        assert len(budgets) == 4
        assert budgets[-1] / budgets[0] == pytest.approx(100)
        for budget in budgets:
            same = [r for r in ladder.rungs if r.budget == budget]
            assert [r.lr_factor for r in same] == [1.0] * 5 + [0.5, 2.0]
            assert len({r.params for r in same}) == 5
            assert all(0.95 * budget < r.flops <= budget for r in same)
            assert max(r.params for r in same) / min(r.params for r in same) > 4
    names = [rung.name for rung in ladder.rungs]
    assert len(set(names)) == len(names)


def test_rungs_are_the_target_made_narrower() -> None:
    for rung in plan_ladder(BIG, BIG_VOCAB, 10**10, 1e17).rungs:
        one = rung.config
        share = one.hidden_size / BIG.hidden_size
        assert one.num_layers == pytest.approx(max(2, BIG.num_layers * share), abs=0.51)
        assert one.intermediate_size == pytest.approx(BIG.intermediate_size * share, abs=4)
        assert one.num_heads % one.num_kv_heads == 0
        assert one.warmup_steps <= max(1, one.tokens // one.batch_tokens // 10)
        kept = ("optimizer", "lr_peak", "schedule", "seed", "context", "rope_theta", "warm_start")
        assert all(getattr(one, name) == getattr(BIG, name) for name in kept)
        assert one.tokens % one.batch_tokens == 0


def test_what_a_budget_does_not_pay_for_is_said() -> None:
    with pytest.raises(RequestError, match=r"do not pay.*Give more --flops: about"):
        plan_ladder(BIG, BIG_VOCAB, 10**10, 1e9)
    with pytest.raises(RequestError, match=r"trains from nothing; pretrain\.base"):
        plan_ladder(BIG.model_copy(update={"base": "x"}), BIG_VOCAB, 10**10, 1e17)
    ladder = plan_ladder(BIG, BIG_VOCAB, 10**6, 1e17)
    assert "epochs of the 1,000,000 tokens" in ladder.warnings[-1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tiny():
    config = tiny_pretrain(warm_start="none", evaluation_tokens=256)
    return plan_ladder(config, VOCAB, 20_000, 1.5e10, budgets=1, sizes=3)


SWEEP = """
import sys
from pathlib import Path
from gristmill.scaling import plan_ladder, train_ladder
from tests.train.corpus import VOCAB, tiny_pretrain

root = Path(sys.argv[1])
config = tiny_pretrain(warm_start="none", evaluation_tokens=256)
ladder = plan_ladder(config, VOCAB, 20_000, 1.5e10, budgets=1, sizes=3)
train_ladder(ladder, {"tokens": root / "tokens", "tokenizer": root / "tokenizer"}, Path(sys.argv[2]))
"""


def test_a_sweep_that_is_killed_goes_on(inputs, tiny, tmp_path) -> None:
    assert len(tiny.rungs) == 3
    out = tmp_path / "sweep"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", SWEEP, str(inputs["tokens"].parent), str(out)]
    process = subprocess.Popen(command, env=environment)
    first, second = (runs_dir(out, rung) for rung in tiny.rungs[:2])
    until = time.monotonic() + 240
    while not ((first / "result.json").is_file() and (second / "job.json").is_file()):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = (first / "result.json").stat().st_mtime_ns
    (out / "results.jsonl").write_text('{"name": "half a li')  # as if cut in the middle of a write

    seen: list[float] = []

    def progress(done: float, total: float, unit: str = "", **values: object) -> None:
        seen.append(done / total)

    rows = train_ladder(tiny, inputs, out, processes=2, progress=progress)
    assert (first / "result.json").stat().st_mtime_ns == done  # not trained again
    assert [row["name"] for row in rows] == [rung.name for rung in tiny.rungs]
    assert rows == [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    runs = read_runs(out)
    assert runs.params.tolist() == [rung.params for rung in tiny.rungs]
    assert ((runs.loss > 1) & (runs.loss < 7)).all()
    assert seen[-1] == pytest.approx(1.0)
    for rung in tiny.rungs:
        place = runs_dir(out, rung)
        assert (place / "model" / "model.safetensors").is_file()
        assert not (place / "checkpoints").exists()
        assert read_json(place / "result.json")["loss_of"] == "held-out text"

    other = plan_ladder(tiny.rungs[0].config, VOCAB, 20_000, 1.6e10, budgets=1, sizes=2)
    with pytest.raises(RequestError, match="is another ladder"):
        train_ladder(other, inputs, out)


def test_a_rung_that_fails_says_why(inputs, tiny, tmp_path) -> None:
    broken = {**inputs, "tokenizer": tmp_path / "missing"}
    with pytest.raises((RequestError, WorkError), match=r"rung c.*missing"):
        train_ladder(tiny, broken, tmp_path / "sweep")
