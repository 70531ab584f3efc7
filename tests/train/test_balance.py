"""The balance of experts: corrections against a closed form, losses against transformers, on one and more processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from gristmill.model import ModelConfig, MoEConfig, Transformer
from gristmill.model.moe import MoE
from gristmill.train.balance import (
    Balance,
    balance_by_row,
    load_balancing_loss,
    router_logits,
    router_z_loss,
)
from gristmill.train.parallel import experts
from tests.tiny_model import randomized
from tests.train.parallel.processes import run_ranks

MIXTURE = MoEConfig(num_experts=8, experts_per_token=2, intermediate_size=8, scoring="sigmoid")
CONFIG = ModelConfig(
    vocab_size=30,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=16,
    max_seq_len=32,
    moe=MIXTURE,
)
SCORINGS = ("sigmoid", "softmax", "softmax_chosen")


def made(scoring: Any = "sigmoid") -> Transformer:
    network = randomized(
        Transformer(replace(CONFIG, moe=replace(MIXTURE, scoring=scoring))), seed=1
    )
    for buffer in network.buffers():
        buffer.zero_()
    return network.train()


def mixtures(network: Transformer) -> list[MoE]:
    return [cast(MoE, block.mlp) for block in network.model.layers]


def batch(step: int, rows: int = 16) -> Tensor:
    return torch.randint(0, 30, (rows, 16), generator=torch.Generator().manual_seed(step))


@torch.no_grad()
def loads_of_a_skewed_router(scoring: str, rate: float, steps: int) -> list[float]:
    """Load of the fullest expert over the mean, step by step; the router likes experts 0 and 1, whatever the token."""
    layer = mixtures(made(scoring))[0]
    generator = torch.Generator().manual_seed(4)
    layer.router.weight.copy_(0.2 * torch.randn(8, 16, generator=generator))
    layer.router.bias = torch.nn.Parameter(torch.linspace(1.0, -1.0, 8))
    balance = Balance(layer, rate, lend=True)
    history = []
    for _ in range(steps):
        layer(torch.randn(1024, 16, generator=generator))
        history.append(balance.after_step()["expert_load_max"])
    return history


@pytest.mark.parametrize(
    ("scoring", "rate"), [("sigmoid", 0.005), ("softmax", 0.002), ("softmax_chosen", 0.02)]
)
def test_a_skewed_router_is_balanced(scoring, rate):
    history = loads_of_a_skewed_router(scoring, rate, 100)
    assert history[0] > 2.0
    assert max(history[-20:]) < 1.3, history[::10]


def test_without_a_rate_a_skewed_router_stays_as_it_is():
    assert min(loads_of_a_skewed_router("sigmoid", 0.0, 20)) > 2.0


def noting(seen: list[Tensor]) -> Any:
    return lambda _, given: seen.append(given[1])


def test_a_step_is_the_published_one_and_its_numbers_are_right():
    network = made()
    chosen: list[list[Tensor]] = [[], []]
    logits: list[Tensor] = []
    for seen, layer in zip(chosen, mixtures(network), strict=True):
        layer.experts.register_forward_pre_hook(noting(seen))
        layer.router.register_forward_hook(lambda _, given, told: logits.append(told.detach()))
    balance = Balance(network, 0.125)
    network(batch(0))  # two micro-batches
    network(batch(1))
    counted = [torch.cat(seen).flatten() for seen in chosen]
    with torch.no_grad():
        network.eval()(batch(2))  # an evaluation does not count
    told = balance.after_step()
    worst = 0.0
    for layer, places in zip(mixtures(network), counted, strict=True):
        load = torch.tensor([float((places == e).sum()) for e in range(8)])
        assert torch.equal(cast(Tensor, layer.correction), 0.125 * torch.sign(load.mean() - load))
        worst = max(worst, float(load.max() / load.mean()))
    shares = [z.double().sigmoid() / z.double().sigmoid().sum(-1, keepdim=True) for z in logits[:4]]
    entropy = torch.distributions.Categorical(probs=torch.cat(shares)).entropy().mean()
    assert told == {
        "expert_load_max": pytest.approx(worst),
        "expert_dropped": 0.0,
        "router_entropy": pytest.approx(float(entropy), rel=1e-5),
    }
    before = [cast(Tensor, layer.correction).clone() for layer in mixtures(network)]
    assert balance.after_step()["router_entropy"] == 0.0, "what was counted is forgotten"
    network.train()(batch(3))
    balance.forget()
    balance.after_step()
    for layer, kept in zip(mixtures(network), before, strict=True):
        assert torch.equal(cast(Tensor, layer.correction), kept)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_correction_of_zero_changes_no_bit_and_is_saved_where_the_format_has_it(scoring):
    network = made(scoring)
    saved, buffers = set(network.state_dict()), set(dict(network.named_buffers()))
    expected = network(batch(0))
    Balance(network, 0.5).remove()
    assert set(dict(network.named_buffers())) == buffers, "none is lent unasked"
    balance = Balance(network, 0.5, lend=True)
    names = {f"model.layers.{layer}.mlp.correction" for layer in range(2)}
    assert names <= set(dict(network.named_buffers())), "a resumed run needs them"
    assert set(network.state_dict()) == saved and (names <= saved) == (scoring == "sigmoid")
    assert torch.equal(network(batch(0)), expected)
    balance.after_step()
    steered = network(batch(0))
    assert not torch.equal(steered, expected)
    balance.remove()
    assert set(dict(network.named_buffers())) == buffers
    assert torch.equal(network(batch(0)), steered if scoring == "sigmoid" else expected)
    hooked = [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked


@torch.no_grad()
def spread(rank: int, capacity_factor: float | None) -> tuple[list[Tensor], dict[str, float]]:
    network = made()
    world = dist.get_world_size() if dist.is_initialized() else 1
    group = dist.group.WORLD if dist.is_initialized() else None
    mesh = init_device_mesh("cpu", (world,)) if dist.is_initialized() else None
    experts.apply(network, mesh, capacity_factor=capacity_factor)
    balance = Balance(network, 0.01)
    for step in range(3):
        rows = batch(step)
        network(rows[rank * 16 // world : (rank + 1) * 16 // world])
        told = balance.after_step(group)
    return [cast(Tensor, layer.correction) for layer in mixtures(network)], told


def spread_both_ways(rank: int) -> list[Any]:
    return [spread(rank, None), spread(rank, 1.1)]


def test_many_processes_move_the_corrections_as_one():
    alone, ranks = spread_both_ways(0), run_ranks(spread_both_ways, 2)
    for rank in ranks:
        for (expected, numbers), (found, told) in zip(alone, rank, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            assert told == pytest.approx(numbers, rel=1e-6)
    assert alone[0][1]["expert_dropped"] == 0.0 and 0.01 < alone[1][1]["expert_dropped"] < 0.5


# The classic losses.


def random_logits(rows: int = 12, layers: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(rows, 8, generator=generator).requires_grad_() for _ in range(layers)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("top", [1, 2])
def test_the_load_balancing_loss_is_that_of_transformers(top, masked):
    ours, theirs = random_logits(), random_logits()
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) < 0.6 if masked else None
    expected = load_balancing_loss_func(cast(Any, tuple(theirs)), 8, top, mask)
    found = load_balancing_loss(ours, top, None if mask is None else mask.flatten())
    assert isinstance(expected, Tensor)
    expected.backward()
    found.backward()
    assert torch.allclose(found, expected, rtol=1e-6)
    for mine, their in zip(ours, theirs, strict=True):
        assert torch.allclose(cast(Tensor, mine.grad), cast(Tensor, their.grad), atol=1e-7)


def test_the_loss_by_row_is_that_of_each_row_alone():
    ours, theirs = random_logits(), random_logits()
    found = balance_by_row(ours, 3, 2)
    rows = [cast(Any, tuple(z[4 * row : 4 * row + 4] for z in theirs)) for row in range(3)]
    expected = torch.stack(
        [cast(Tensor, load_balancing_loss_func(row, 8, 2)) for row in rows]
    ).sum()
    found.backward()
    expected.backward()
    assert torch.allclose(found, expected, rtol=1e-6)
    for mine, their in zip(ours, theirs, strict=True):
        assert torch.allclose(cast(Tensor, mine.grad), cast(Tensor, their.grad), atol=1e-7)


def test_the_load_balancing_loss_of_known_routings():
    even = 20.0 * torch.eye(8)
    assert load_balancing_loss([even], 1).item() == pytest.approx(1.0, rel=1e-5)
    one_for_all = torch.zeros(8, 8)
    one_for_all[:, 3] = 20.0
    assert load_balancing_loss([one_for_all], 1).item() == pytest.approx(8.0, rel=1e-5)


def test_the_z_loss_of_known_logits():
    zero, large = torch.zeros(4, 8), torch.full((4, 8), 3.0)
    log8 = torch.log(torch.tensor(8.0)).item()
    assert router_z_loss([zero]).item() == pytest.approx(log8**2, rel=1e-6)
    assert router_z_loss([zero, large]).item() == pytest.approx(
        (log8**2 + (3 + log8) ** 2) / 2, rel=1e-6
    )
    mixed = torch.cat((zero[:1], large))
    counted = torch.tensor([False, True, True, True, True])
    assert router_z_loss([mixed], counted).item() == pytest.approx((3 + log8) ** 2, rel=1e-6)


def loss_of_rank(rank: int) -> tuple[float, list[Tensor]]:
    logits = random_logits()
    mine = slice(0, 5) if rank == 0 else slice(5, 12)
    loss = load_balancing_loss([z[mine] for z in logits], 2, group=dist.group.WORLD)
    share = (mine.stop - mine.start) / 12
    (loss * share).backward()
    return loss.item() * share, [cast(Tensor, z.grad) for z in logits]


def test_the_load_balancing_losses_of_two_processes_average_to_that_of_one():
    logits = random_logits()
    loss = load_balancing_loss(logits, 2)
    loss.backward()
    ranks = run_ranks(loss_of_rank, 2)
    assert sum(value for value, _ in ranks) == pytest.approx(loss.item(), rel=1e-6)
    for number, z in enumerate(logits):
        total = torch.stack([gradients[number] for _, gradients in ranks]).sum(0)
        assert torch.allclose(total, cast(Tensor, z.grad), atol=1e-7)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_the_losses_reach_the_routers_and_balance_them(scoring):
    network = made(scoring)
    with router_logits(network) as logits:
        network(batch(0))
    assert [tuple(z.shape) for z in logits] == [(256, 8)] * 2
    (load_balancing_loss(logits, 2) + router_z_loss(logits)).backward()
    for layer in mixtures(network):
        assert cast(Tensor, layer.router.weight.grad).abs().max() > 0
        assert not layer.router._forward_hooks
