"""Every layout is the same run: losses, gradient norms and weights as on one process; checkpoints go anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gristmill.files import read_jsonl
from gristmill.formats import Model
from gristmill.train.parallel import layout as layouts
from gristmill.train.parallel.layout import Layout
from gristmill.train.pretrain import PretrainConfig, work
from tests.train.corpus import corpus, tiny_pretrain
from tests.train.parallel.processes import run_ranks

STEPS = 20
# Every dimension alone, then in company. Pipelines need micro-batches, and two stages a process four layers.
LAYOUTS = {
    "fsdp": dict(dp=2),
    "hsdp": dict(replicas=2, dp=2),
    "tp": dict(tp=2),
    "cp": dict(cp=2),
    "pp 1f1b": dict(pp=2),
    "pp interleaved": dict(pp=2, schedule="interleaved-1f1b"),
    "pp zero-bubble": dict(pp=2, schedule="zero-bubble"),
    "fsdp x tp": dict(dp=2, tp=2),
    "pp x fsdp": dict(pp=2, dp=2),
    "fsdp x cp": dict(dp=2, cp=2),
    "fsdp x tp x cp": dict(dp=2, tp=2, cp=2),
    "pp x tp": dict(pp=2, tp=2),
    "ep": dict(dp=2, ep=2),
    "fsdp x ep": dict(dp=4, ep=2),
    "ep x cp": dict(dp=2, ep=2, cp=2),
}
EXPERTS = dict(num_experts=4, experts_per_token=2, expert_size=48)


def settings(**more: Any) -> PretrainConfig:
    return tiny_pretrain(
        num_layers=4,
        context=32,
        batch_tokens=512,
        tokens=STEPS * 512,
        micro_batches=4,
        warm_start="none",
        lr_embedding_peak=0.01,
        evaluation_tokens=512,
        evaluations=1,
        checkpoint_seconds=0,
        **more,
    )


def train_here(
    config: PretrainConfig, inputs: dict[str, Path], out: Path, until: int = STEPS
) -> None:
    """What a process of the layout does; from `until` on it is as if all had been killed."""

    def stop(done: float, *_: Any, **__: Any) -> None:
        if done >= until < STEPS:
            raise KeyboardInterrupt

    mesh = layouts.build(config.layout) if config.layout.world > 1 else None
    work(config, inputs, out, mesh, stop, log_every=1)


def rank(_: int, config: str, inputs: dict[str, Path], out: Path, until: int = STEPS) -> None:
    torch.set_num_threads(1)
    train_here(PretrainConfig.model_validate_json(config), inputs, out, until)


def spread(config: PretrainConfig, inputs: dict[str, Path], out: Path, until: int = STEPS) -> None:
    run_ranks(rank, config.layout.world, config.model_dump_json(), inputs, out, until, timeout=400)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    train_here(settings(), inputs, out)
    return out


@pytest.fixture(scope="module")
def alone_with_experts(inputs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone_with_experts")
    train_here(settings(**EXPERTS), inputs, out)
    return out


def assert_same_run(out: Path, alone: Path) -> None:
    found, wanted = (read_jsonl(place / "metrics.jsonl") for place in (out, alone))
    assert [row["step"] for row in found] == [*range(1, STEPS + 1)]
    for mine, other in zip(found, wanted, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5), mine["step"]
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4), mine["step"]
    name = "heldout_bits_per_byte"
    assert found[-1][name] == pytest.approx(wanted[-1][name], rel=1e-5)
    weights = [
        dict(Model.load(place / "model").network.named_parameters()) for place in (out, alone)
    ]
    for key, value in weights[1].items():
        assert (weights[0][key] - value).abs().max() < 5e-4, key


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_changes_nothing(name, inputs, alone, alone_with_experts, tmp_path):
    experts = EXPERTS if "ep" in name.split() else {}
    spread(settings(layout=Layout(**LAYOUTS[name]), **experts), inputs, tmp_path)
    assert_same_run(tmp_path, alone_with_experts if experts else alone)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("fsdp", "tp"),
        ("fsdp x tp", "pp x fsdp"),
        ("pp interleaved", "hsdp"),
        ("cp", "fsdp x tp x cp"),
    ],
)
def test_a_checkpoint_of_one_layout_goes_on_under_another(first, second, inputs, alone, tmp_path):
    with pytest.raises(AssertionError, match="KeyboardInterrupt"):
        spread(settings(layout=Layout(**LAYOUTS[first])), inputs, tmp_path, until=9)
    steps = [
        json.loads((p / "checkpoint.json").read_text())["step"]
        for p in (tmp_path / "checkpoints").iterdir()
    ]
    assert steps and max(steps) < STEPS
    spread(settings(layout=Layout(**LAYOUTS[second])), inputs, tmp_path)
    assert_same_run(tmp_path, alone)


def test_from_many_processes_to_one_and_back(inputs, alone, tmp_path):
    with pytest.raises(AssertionError, match="KeyboardInterrupt"):
        spread(settings(layout=Layout(dp=2)), inputs, tmp_path, until=6)
    with pytest.raises(KeyboardInterrupt):
        train_here(settings(), inputs, tmp_path, until=13)
    spread(settings(layout=Layout(dp=2, tp=2)), inputs, tmp_path)
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize(
    ("layout", "more"),
    [
        ("fsdp", dict(optimizer="adamw", weight_decay=0.1)),
        ("fsdp", dict(documents="apart", z_loss=1e-4, tie_embeddings=True)),
        ("cp", dict(documents="apart")),
        ("pp x fsdp", dict(documents="apart", ema_decay=0.9)),
        ("fsdp x tp", dict(ema_decay=0.9, recompute="selective")),
        ("hsdp", dict(recompute="full", micro_batches=2)),
        ("pp x tp", dict(qk_norm=False)),
    ],
)
def test_settings_hold_under_layouts(layout, more, inputs, tmp_path):
    config = settings().model_copy(update=more)
    train_here(config, inputs, tmp_path / "alone")
    spread(
        config.model_copy(update={"layout": Layout(**LAYOUTS[layout])}), inputs, tmp_path / "many"
    )
    assert_same_run(tmp_path / "many", tmp_path / "alone")
