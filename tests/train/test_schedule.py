"""Learning-rate schedules against their closed forms and torch's schedulers; muP by a coordinate check."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F

from gristmill.model import ModelConfig, Transformer, generator_for, initialize
from gristmill.model.init import narrow_head
from gristmill.train.optim import OptimConfig, Optimizer
from gristmill.train.parallel.leaves import leaves
from gristmill.train.schedule import for_width, lr_scale

SCHEDULES = ["wsd", "linear", "cosine", "constant"]


def scale(step: int, steps: int = 100, **settings) -> float:
    return lr_scale(
        step, steps, **{"schedule": "wsd", "warmup_steps": 10, "decay_fraction": 0.5, **settings}
    )


def test_warmup_is_linear_and_complete_at_its_last_step():
    found = [scale(step, schedule="constant") for step in range(12)]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0])


def test_wsd_holds_and_then_falls_linearly_to_one_step_above_zero():
    found = [scale(step) for step in range(100)]
    assert found[10:51] == pytest.approx([1.0] * 41)
    assert found[50:] == pytest.approx([(100 - step) / 50 for step in range(50, 100)])
    assert found[-1] == pytest.approx(1 / 50)


def test_cosine():
    assert scale(25, schedule="cosine") == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert scale(50, schedule="cosine") == pytest.approx(0.5)
    assert scale(75, schedule="cosine") == pytest.approx(0.5 - math.sqrt(0.5) / 2)


def test_no_warmup_and_no_decay():
    assert scale(0, warmup_steps=0, schedule="constant") == 1.0
    assert scale(99, decay_fraction=0.0) == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_every_step_moves_and_none_exceeds_the_peak(schedule, steps):
    for step in range(steps):
        found = scale(step, steps, schedule=schedule, decay_fraction=1.0)
        assert 0 < found <= 1


def of_torch(make, steps: int) -> list[float]:
    """The factors of a scheduler of torch's, one a step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("steps", [7, 60])
def test_torchs_schedulers_give_the_same(steps):
    kinds = torch.optim.lr_scheduler
    theirs = {
        "linear": lambda o: kinds.LinearLR(o, 1.0, 0.0, total_iters=steps),
        "cosine": lambda o: kinds.CosineAnnealingLR(o, T_max=steps),
        "constant": lambda o: kinds.ConstantLR(o, 1.0),
    }
    for schedule, make in theirs.items():
        ours = [scale(step, steps, schedule=schedule, warmup_steps=0) for step in range(steps)]
        assert ours == pytest.approx(of_torch(make, steps), abs=1e-9), schedule
    ours = [scale(step, steps, schedule="constant", warmup_steps=5) for step in range(steps)]
    warmup = of_torch(lambda o: kinds.LinearLR(o, 0.2, 1.0, total_iters=4), steps)
    assert ours == pytest.approx(warmup)


def test_wsd_is_two_of_torchs_one_after_the_other():
    kinds = torch.optim.lr_scheduler

    def make(optimizer):
        hold, fall = kinds.ConstantLR(optimizer, 1.0), kinds.LinearLR(optimizer, 1.0, 0.0, 40)
        return kinds.SequentialLR(optimizer, [hold, fall], milestones=[60])

    ours = [scale(step, warmup_steps=0, decay_fraction=0.4) for step in range(100)]
    assert ours == pytest.approx(of_torch(make, 100))


BASE, WIDTHS = 32, (64, 256)
T, VOCAB, HEAD = 16, 64, 16


def sizes_after(
    width: int,
    *,
    mup: bool,
    optimizer: Literal["muon", "adamw"] = "adamw",
    tied: bool = False,
    steps: int = 6,
) -> dict[str, float]:
    """Mean |change| of activations and logits that `steps` steps have made, rates tuned for BASE."""
    shape = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        num_layers=2,
        num_heads=width // HEAD,
        num_kv_heads=width // HEAD,
        head_dim=HEAD,
        intermediate_size=2 * width,
        max_seq_len=T,
        tie_embeddings=tied,
    )
    network = initialize(Transformer(shape), seed=0, embedding_std=0.5)
    rates: dict[str, Any] = {"lr_peak": 0.01, "lr_head": 1.0, "weight_decay": 0.0}
    if mup:
        narrow_head(network.named_parameters(), BASE / width)
        factors = for_width(BASE, width, optimizer)
        rates = {name: rate * factors.get(name, 1.0) for name, rate in rates.items()}
    settings = OptimConfig(optimizer=optimizer, lr_embedding_peak=0.01, **rates)
    optim = Optimizer(leaves([network]), settings, torch.float32)

    def look() -> dict[str, torch.Tensor]:
        kept = {}
        hooks = [
            block.register_forward_hook(lambda m, i, out, n=n: kept.update({f"block {n}": out}))
            for n, block in enumerate(network.model.layers)
        ]
        with torch.no_grad():
            kept["logits"] = network(batch(0)[:, :-1])
        for hook in hooks:
            hook.remove()
        return kept

    before = look()
    for step in range(steps):
        tokens = batch(step)
        logits = network(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optim.step(1.0)
    after = look()
    return {name: float((after[name] - before[name]).abs().mean()) for name in before}


def batch(step: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (4, T + 1), generator=generator_for(0, f"batch {step % 2}"))


def growth(**settings) -> dict[str, float]:
    """The power of the width that each size grows with, between the narrowest and the widest."""
    first, last = (sizes_after(width, **settings) for width in WIDTHS)
    span = math.log(WIDTHS[-1] / WIDTHS[0])
    return {name: math.log(last[name] / first[name]) / span for name in first}


@pytest.mark.parametrize("tied", [False, True])
def test_coordinates_do_not_grow_with_the_width_under_mup_and_do_without(tied):
    under, without = growth(mup=True, tied=tied), growth(mup=False, tied=tied)
    # What the head's first values add to the logits vanishes with the width, so these may shrink.
    assert all(-0.4 < power < 0.15 for power in under.values()), under
    assert without["block 1"] > 0.8 and without["logits"] > 0.3, without


def test_muon_needs_no_more_than_the_head():
    under = growth(mup=True, optimizer="muon")
    assert all(-0.4 < power < 0.15 for power in under.values()), under


def test_the_base_width_changes_nothing():
    assert set(for_width(64, 64, "adamw").values()) == {1.0}
    assert for_width(64, 256, "adamw") == {"lr_head": 0.25, "lr_peak": 0.25, "weight_decay": 4.0}
    assert for_width(64, 256, "muon") == {"lr_head": 0.25}


def test_rates_of_the_head_and_of_the_others():
    """The head's factor is the head's alone, the last norm's where the head is tied."""
    for tied, name in ((False, "lm_head.weight"), (True, "model.norm.weight")):
        shape = ModelConfig(
            vocab_size=8,
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            head_dim=16,
            intermediate_size=32,
            max_seq_len=8,
            tie_embeddings=tied,
        )
        network = initialize(Transformer(shape), 0)
        settings = OptimConfig(lr_peak=0.0, lr_embedding_peak=0.01, lr_head=0.5)
        optimizer = Optimizer(leaves([network]), settings, torch.float32)
        before = {n: p.detach().clone() for n, p in network.named_parameters()}
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(1.0)
        for n, p in network.named_parameters():
            flat = p.ndim == 1 or "embed_" in n or "lm_head" in n
            wanted = 0.005 if n == name else 0.01 if flat else 0.0
            moved = (before[n] - p.detach()).abs().max().item()
            assert moved == pytest.approx(wanted, abs=1e-6), n
