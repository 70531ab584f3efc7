"""What a run tells of itself: speed and FLOPs, waiting, stragglers, samples, the noise of its gradient."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from gristmill.errors import RequestError
from gristmill.formats import Model
from gristmill.model import ModelConfig
from gristmill.recipe.view import Live
from gristmill.train import Judge, NextToken, watch
from gristmill.train.next_token import bytes_of_token
from gristmill.train.parallel import layout, sharding
from gristmill.train.parallel.layout import Layout
from gristmill.train.parallel.spread import Spread
from gristmill.train.pretrain import check, run
from gristmill.train.watch import Watch, continued, flops_per_token, slowest
from gristmill.train.windows import Windows
from tests.train.corpus import SHAPE, corpus, random_network, tiny_pretrain, write_tokens
from tests.train.parallel.processes import run_ranks

T = 64


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """Three held-out groups, the last shorter than a window."""
    made = corpus(tmp_path_factory.mktemp("corpus"))
    tokens = {
        name: np.load(made["tokens"] / f"train.{name}.npy") for name in ("packages", "stdlib")
    }
    heldout = np.load(made["tokens"] / "heldout.stdlib.npy")
    held = {"easy": np.tile(heldout[:40], 40), "stdlib": heldout, "tiny": heldout[:9]}
    write_tokens(made["tokens"], {"train": tokens, "heldout": held})
    return made


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run with everything on: (its directory, its metrics)."""
    out = tmp_path_factory.mktemp("run")
    config = tiny_pretrain(
        warm_start="none", samples=("import ", "def"), measure_noise=True, micro_batches=2
    )
    return out, run(config, inputs, out).metrics


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def attend_plainly(q_BHTC, k_BKTC, v_BKTC, context, config, sinks_H):
    """In products that torch counts; of fused attention it counts nothing on a CPU."""
    shared = q_BHTC.shape[1] // k_BKTC.shape[1]
    k_BHTC, v_BHTC = (x.repeat_interleave(shared, 1) for x in (k_BKTC, v_BKTC))
    return (q_BHTC @ k_BHTC.mT).tril().softmax(-1) @ v_BHTC


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_those_that_torch_counts(tied):
    """It counts the products as they are made, attention without the causal half: 2 · 12 · layers · d · T/2."""
    shape = {**SHAPE, "num_layers": 3, "tie_embeddings": tied}
    network = random_network(**shape)
    tokens = torch.randint(0, 512, (2, T))
    for block in network.model.layers:
        vars(block.self_attn)["attend"] = attend_plainly
    with FlopCounterMode(display=False) as counter:
        network(tokens).square().sum().backward()
    d = SHAPE["num_heads"] * SHAPE["head_dim"]
    causal = 12 * 3 * d * T / 2
    found = flops_per_token(network.config, T)
    assert counter.get_total_flops() / (2 * T) == pytest.approx(found + causal, rel=0.01)
    matrices = sum(
        p.numel() for n, p in network.named_parameters() if p.ndim == 2 and "embed" not in n
    )
    assert found == 6 * (matrices + (512 * SHAPE["hidden_size"] if tied else 0)) + causal


def test_flops_of_windows():
    base: dict[str, Any] = {"vocab_size": 512, **SHAPE, "num_layers": 2}
    whole = flops_per_token(ModelConfig(**base), T)
    kinds = ("sliding_attention", "full_attention")
    seen = [min(place + 0.5, 16) for place in range(T)]  # half of its own, as T/2 has it
    windowed = ModelConfig(**base, layer_types=kinds, sliding_window=16)
    d = SHAPE["num_heads"] * SHAPE["head_dim"]
    saved = 12 * d * (T / 2 - sum(seen) / T)
    assert flops_per_token(windowed, T) == pytest.approx(whole - saved)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


def alone(**changes: Any) -> Any:
    network = random_network()
    held = dict(mesh=None, first=True, device=torch.device("cpu"), dtype=torch.float32)
    return SimpleNamespace(network=network, leaves=[], micro_batches=1, **{**held, **changes})


def test_the_numbers_of_a_row(tmp_path, monkeypatch):
    """Two steps of 2 s and 3 s for 50 targets each, 0.5 s of data within, then 5 s of evaluation."""
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(watch, "peak_flops", lambda device, dtype: 1e9)
    look = Watch(tmp_path, context=T)
    look.begin(alone(), 4)
    for seconds in (2.0, 3.0):
        with look.step():
            with look.waiting("data"):
                clock.now += 0.5
            clock.now += seconds - 0.5
            look.gradients(50, keep=True)
    clock.now += 5
    shown = look.row(6, 10, {"step": 6, "loss": 1.0}, "tokens")
    flops = flops_per_token(random_network().config, T)
    assert shown == pytest.approx({"tokens_per_s": 20.0, "mfu": 20 * flops / 1e9})
    with look.waiting("checkpoints"):
        clock.now += 1.0
    with look.step():
        clock.now += 1.0
        look.gradients(40, keep=True)
    assert look.row(7, 10, {"step": 7}, "tokens")["tokens_per_s"] == 40.0  # the row's own
    first, second = lines(tmp_path / "timing.jsonl")
    assert first["seconds"] == 10.0 and first["eta_seconds"] == 20.0  # 5 s a step, 4 steps
    assert first["waited_for_data_s"] == 1.0 and first["waited_for_checkpoints_s"] == 0.0
    assert second["waited_for_checkpoints_s"] == 1.0 and second["eta_seconds"] == 12.0
    assert first["flops_per_s"] / first["peak_flops_per_s"] == first["mfu"]
    assert first["memory_bytes"] > 10e6
    assert not {"cuda_peak_bytes", "slowest_over_median"} & set(first)


def test_a_known_gpu_is_divided_by_its_printed_peak(monkeypatch):
    names = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H200": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA GeForce RTX 4090": 165e12,
    }
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert watch.peak_flops(torch.device("cuda"), torch.bfloat16) == peak


def test_the_slowest_process_is_named():
    assert slowest([1.0, 1.1, 1.2, 0.9]) == {"slowest_over_median": 1.2}
    assert slowest([1.0, 1.0, 3.0, 1.0]) == {"slowest_over_median": 3.0, "stragglers": [2]}
    assert slowest([1.0, 2.0]) == {"slowest_over_median": 2.0, "stragglers": [1]}


def straggling(rank: int, out_dir: str) -> dict[str, float]:
    mesh = layout.build(Layout(dp=2))
    parts = sharding.apply(random_network(), mesh, dtype=torch.float32)
    watch._seconds_of_product = lambda device, dtype: 0.01 + 0.04 * rank
    look = Watch(Path(out_dir))
    look.begin(Spread(parts, mesh, dtype=torch.float32), 0)
    look.waited["data"] = 1.0 + rank
    return look.row(1, 2, {}, "tokens")


def test_stragglers_of_two_processes(tmp_path):
    run_ranks(straggling, 2, str(tmp_path), timeout=100)
    (row,) = lines(tmp_path / "timing.jsonl")
    assert row["slowest_over_median"] == pytest.approx(5.0) and row["stragglers"] == [1]
    assert row["waited_for_data_s"] == 2.0


def test_greedy_continuation_is_what_one_pass_over_all_of_it_prefers():
    network = random_network().eval()
    ids = [3, 1, 4, 1, 5]
    new = continued(network, ids, 20, torch.float32)
    assert len(new) == 20 and len(set(new)) > 3
    preferred = network(torch.tensor([ids + new]))[0].argmax(-1)
    assert preferred[len(ids) - 1 : -1].tolist() == new


def test_a_continuation_goes_on_beyond_the_context():
    network = random_network(max_seq_len=8).eval()
    assert len(continued(network, [1, 2, 3], 12, torch.float32)) == 12


def test_a_runs_rows(made):
    out, metrics = made
    rows, timing = lines(out / "metrics.jsonl"), lines(out / "timing.jsonl")
    assert [row["step"] for row in timing] == [row["step"] for row in rows]
    assert all(0 < row["mfu"] < 1.5 and row["tokens_per_s"] > 0 for row in timing)
    assert timing[-1]["eta_seconds"] == 0 and timing[0]["eta_seconds"] > 0
    clocks = {"seconds", "mfu", "tokens_per_s", "eta_seconds"}
    assert not any(clocks & set(row) for row in rows)
    assert metrics["history"] == rows
    noise = [row["noise_tokens"] for row in rows if "noise_tokens" in row]
    assert noise and all(value > 0 and math.isfinite(value) for value in noise)


def test_samples_of_every_evaluation(made):
    out, metrics = made
    samples = lines(out / "samples.jsonl")
    assert samples == metrics["samples"]
    places = [(row["step"], row["prompt"]) for row in samples]
    assert places == [(step, prompt) for step in (12, 24) for prompt in ("import ", "def")]
    last = Model.load(out / "model")
    start = last.tokenizer.document_start + last.tokenizer.encode("def")
    new = continued(last.network.eval(), start, watch.SAMPLE_TOKENS, torch.float32)
    assert last.tokenizer.decode(new) == samples[-1]["continuation"]


class Stop(Exception):
    pass


def test_an_interrupted_run_has_the_same_rows_and_samples(made, inputs, tmp_path):
    config = tiny_pretrain(
        warm_start="none",
        samples=("import ", "def"),
        measure_noise=True,
        micro_batches=2,
        checkpoint_seconds=0,
    )

    def stop(done: float, *a: Any, **k: Any) -> None:
        if done == 12:  # the samples of step 12 are written, and its checkpoint is not
            raise Stop

    with pytest.raises(Stop):
        run(config, inputs, tmp_path, stop)
    assert len(lines(tmp_path / "samples.jsonl")) == 2
    run(config, inputs, tmp_path)
    for name in ("samples.jsonl", "metrics.jsonl"):
        assert (tmp_path / name).read_bytes() == (made[0] / name).read_bytes()


def test_held_out_bits_of_every_group_are_those_of_the_group_alone(made, inputs):
    out, metrics = made
    row = metrics["history"][-1]
    tokenizer = Model.load(out / "model").tokenizer
    counted = bytes_of_token(tokenizer)
    train = Windows(inputs["tokens"], "train", T, {}, 0)
    spread = Spread([Model.load(out / "model").network.eval()], dtype=torch.float32)
    for group in ("easy", "stdlib"):
        heldout = Windows(inputs["tokens"], "heldout", T, {group: 1.0}, 0)
        goal = NextToken(train, heldout, counted, 4, 4)  # half of the 8 rows for each of two
        wanted = goal.evaluate(Judge(spread, goal))["heldout_bits_per_byte"]
        assert row[f"heldout_bits_per_byte/{group}"] == pytest.approx(wanted, abs=1e-4)
    assert "heldout_bits_per_byte/tiny" not in row
    assert row["heldout_bits_per_byte/easy"] != row["heldout_bits_per_byte/stdlib"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(measure_noise=True), "micro_batches to 2 or more"),
        (dict(samples=("a",), layout=Layout(dp=2)), "samples are made by one process"),
        (dict(width_base=32), 'warm_start = "none"'),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(RequestError, match=said):
        check(tiny_pretrain(**settings))


def test_a_base_width_scales_rates_and_head(inputs, tmp_path, monkeypatch):
    """At twice the width it was tuned for, AdamW's rate is half in the rows; at its own nothing changes."""
    settings = dict(
        warm_start="none",
        optimizer="adamw",
        evaluations=0,
        tokens=512,
        lr_peak=0.004,
        warmup_steps=0,
    )
    rows = {}
    for base in ("off", 64, 32):
        config = tiny_pretrain(**settings, width_base=base)
        rows[base] = run(config, inputs, tmp_path / str(base)).metrics["history"]
    assert rows["off"] == rows[64]
    assert rows[32][-1]["lr"] == pytest.approx(rows[64][-1]["lr"] / 2)
    assert rows[32][-1]["loss"] != rows[64][-1]["loss"]


def test_the_live_line_of_a_terminal_of_80_columns():
    console = Console(width=80, record=True, force_terminal=True, file=io.StringIO())
    live = Live(console)
    live.begin({"pretrain": "train"})
    live.started("pretrain", "")
    values = {"loss": 2.314, "bits_per_byte": 1.52, "tokens_per_s": 15_120.0, "mfu": 0.312}
    live.progress("pretrain", 1300, 9600, "steps", values)
    console.print(live._bars.get_renderable())
    (line,) = console.export_text().splitlines()
    assert len(line.rstrip()) <= 80 and "pretrain" in line and "1,300" in line
