"""Experts spread over processes say what one process says, with its gradients; and one what transformers says."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from gristmill.errors import RequestError
from gristmill.formats import load_network
from gristmill.model import ModelConfig, MoEConfig, Transformer, meta_network
from gristmill.model.moe import Experts, MoE
from gristmill.train.parallel import experts
from gristmill.train.parallel.layout import Layout, build
from tests.families import saved
from tests.tiny_model import randomized
from tests.train.parallel.processes import run_ranks

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}
MIXTURE = MoEConfig(num_experts=8, experts_per_token=3, intermediate_size=10, scoring="sigmoid")
CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=12,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=16,
    max_seq_len=16,
    tie_embeddings=False,
    moe=MIXTURE,
)
BIASED = replace(CONFIG, moe=replace(MIXTURE, scoring="softmax_chosen", bias=True))


def made(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    network = randomized(Transformer(config), seed=3)
    for buffer in network.buffers():
        buffer.zero_()
    return network.to(dtype)


def mixture(network: Transformer) -> MoE:
    return cast(MoE, network.model.layers[0].mlp)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    assert expected.dtype == dtype
    return torch.allclose(found, expected, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


# One layer, its tokens dealt unevenly. A case: tokens of each rank, and what the choice leans to.
CASES = {
    "even of 2": ((9, 5), ()),
    "even of 4": ((3, 7, 1, 3), ()),
    "nobody asks the last rank": ((6, 8), (0, 1, 2, 3)),
    "nobody asks two of four": ((4, 4, 2, 4), (4, 5, 6)),
    "a rank without tokens": ((0, 9, 0, 5), ()),
    "nobody asks a rank without tokens": ((14, 0), (0, 1, 2)),
}


def layer(
    config: ModelConfig, dtype: torch.dtype, favoured: tuple[int, ...], rows: slice, spread: bool
) -> dict[str, Tensor]:
    """Output, gradients and load of one layer for some of 14 tokens, with the experts spread over all ranks or not."""
    network = made(config, dtype)
    if spread:
        experts.apply(network, init_device_mesh("cpu", (dist.get_world_size(),)))
    layer = mixture(network)
    for expert in favoured:
        with torch.no_grad():
            steered = layer.router.bias if config is BIASED else layer.correction
            cast(Tensor, steered)[expert] += 100.0
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(14, 12, generator=generator, dtype=dtype)[rows] for _ in range(2))
    x.requires_grad_()
    asked: list[Tensor] = []
    layer.experts.register_forward_pre_hook(lambda _, given: asked.append(given[1]))
    y = layer(x[None])[0]
    (y * g).sum().backward()
    found = {
        "y": y.detach(),
        "x": cast(Tensor, x.grad),
        "load": asked[0].flatten().bincount(minlength=8),
    }
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        found[name] = whole(parameter.grad)
    return found


def runs(world: int) -> list[tuple[str, ModelConfig, torch.dtype]]:
    cases = [case for case, (tokens, _) in CASES.items() if len(tokens) == world]
    return [(c, config, dtype) for c in cases for config in (CONFIG, BIASED) for dtype in BOUNDS]


def layers_of_rank(rank: int) -> list[dict[str, Tensor]]:
    found = []
    for case, config, dtype in runs(dist.get_world_size()):
        tokens, favoured = CASES[case]
        rows = slice(sum(tokens[:rank]), sum(tokens[: rank + 1]))
        found.append(layer(config, dtype, favoured, rows, spread=True))
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_a_layer_of_many_processes_is_that_of_one(world):
    all_ranks = run_ranks(layers_of_rank, world)
    for (case, config, dtype), *ranks in zip(runs(world), *all_ranks, strict=True):
        expected = layer(config, dtype, CASES[case][1], slice(None), spread=False)
        unasked = (expected["load"].view(world, -1).sum(1) == 0).any()
        assert unasked == case.startswith("nobody asks"), "the case is not the one that it says"
        for name in ("y", "x"):
            joined = torch.cat([found[name] for found in ranks])
            assert close(joined, expected[name], dtype), (case, name)
        for name in expected.keys() - {"y", "x", "load"}:
            if name.startswith("experts."):  # every rank has them for the tokens of all
                assert all(close(found[name], expected[name], dtype) for found in ranks), (
                    case,
                    name,
                )
            else:
                total = torch.stack([found[name] for found in ranks]).sum(0)
                assert close(total, expected[name], dtype), (case, name)


# A capacity: the same rows are dropped by any number of processes, and by the rule written down plainly.


def plainly_kept(chosen_NK: Tensor, weights_NK: Tensor, capacity: int) -> Tensor:
    kept_NK = torch.zeros_like(chosen_NK, dtype=torch.bool)
    for expert in range(8):
        rows = [(n, k) for n, k in (chosen_NK == expert).nonzero().tolist()]
        rows.sort(key=lambda row: (-float(weights_NK[row]), row[0]))
        for row in rows[:capacity]:
            kept_NK[row] = True
    return kept_NK


def routed() -> tuple[Tensor, Tensor, Tensor]:
    """24 tokens that crowd at experts 0 and 5, with weights of few values, so that many are equal."""
    generator = torch.Generator().manual_seed(1)
    liking = torch.rand(24, 8, generator=generator)
    liking[:, [0, 5]] += 0.5
    x = torch.randn(24, 12, generator=generator, dtype=torch.float64)
    weights = torch.randint(1, 4, (24, 3), generator=generator).double() / 4
    return x, liking.topk(3).indices, weights


FACTORS = (0.1, 1.0, 1.25, 8.0)


def with_capacities(rank: int) -> list[dict[str, Any]]:
    return [with_capacity(rank, factor) for factor in FACTORS]


def with_capacity(rank: int, factor: float) -> dict[str, Any]:
    network = made(CONFIG, torch.float64)
    spread = dist.is_initialized()
    world = dist.get_world_size() if spread else 1
    mesh = init_device_mesh("cpu", (world,)) if spread else None
    experts.apply(network, mesh, capacity_factor=factor)
    x, chosen, weights = (
        tensor[rank * 24 // world : (rank + 1) * 24 // world] for tensor in routed()
    )
    x.requires_grad_()
    weights.requires_grad_()
    y = mixture(network).experts(x, chosen, weights)
    y.square().sum().backward()
    return {
        "y": y.detach(),
        "x": x.grad,
        "weights": weights.grad,
        "gate": whole(cast(Tensor, mixture(network).experts.gate_proj.grad)),
        "dropped": int(cast(experts.Exchange, mixture(network).experts.forward).dropped),
    }


def test_a_capacity_drops_the_same_rows_on_any_number_of_processes():
    x, chosen, weights = routed()
    network = made(CONFIG, torch.float64)
    of_worlds = [[with_capacities(0)], *(run_ranks(with_capacities, n) for n in (1, 2, 4))]
    shares = []
    for number, factor in enumerate(FACTORS):
        kept = plainly_kept(chosen, weights, ceil(factor * 24 * 3 / 8))
        shares.append(float((~kept).double().mean()))
        expected = mixture(network).experts(x, chosen, weights * kept)
        alone = of_worlds[0][0][number]
        for world in of_worlds:
            ranks = [of_factors[number] for of_factors in world]
            assert sum(rank["dropped"] for rank in ranks) == (~kept).sum()
            joined = {
                name: torch.cat([rank[name] for rank in ranks]) for name in ("y", "x", "weights")
            }
            assert close(joined["y"], expected.detach(), torch.float64)
            assert close(joined["x"], alone["x"], torch.float64)
            assert close(joined["weights"], alone["weights"], torch.float64)
            assert (joined["weights"][~kept] == 0).all()
            assert all(close(rank["gate"], alone["gate"], torch.float64) for rank in ranks)
    assert shares[0] > 0.8 and 0 < shares[2] < shares[1] < 0.5 and shares[3] == 0


# The whole network, its experts spread over one dimension and sharded over the other, and its checkpoint.


def network_of_rank(rank: int, place: Path) -> dict[str, Any]:
    network = made(CONFIG, torch.float64)
    mesh = build(Layout(dp=4, ep=2))
    experts.apply(network, mesh.dims["ep"])
    modules: list[tuple[Any, Any]] = [
        (cast(MoE, block.mlp).experts, mesh.dims["fsdp_experts"]) for block in network.model.layers
    ]
    modules += [(block, mesh.dims["fsdp"]) for block in network.model.layers]
    for module, over in [*modules, (network, mesh.dims["fsdp"])]:
        sharded = cast(FSDPModule, fully_shard(module, mesh=over))
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    assert cast(Any, mixture(network).experts.gate_proj).to_local().shape == (2, 10, 12)
    tokens = batch()[mesh.row :: 4]
    loss = network(tokens).double().square().sum()
    loss.backward()
    parameters = dict(network.named_parameters())
    dcp.save({"network": parameters}, checkpoint_id=place)
    gradients = {name: whole(cast(Tensor, p.grad)) for name, p in parameters.items()}
    return {"loss": loss.detach(), "gradients": gradients if rank == 0 else {}}


def batch() -> Tensor:
    return torch.randint(0, 40, (8, 10), generator=torch.Generator().manual_seed(5))


def test_a_network_with_sharded_experts_and_its_checkpoint(tmp_path):
    network = made(CONFIG, torch.float64)
    loss = network(batch()).double().square().sum()
    loss.backward()
    ranks = run_ranks(network_of_rank, 4, tmp_path / "saved")
    # The logits are fp32 in any network.
    assert torch.allclose(cast(Tensor, sum(rank["loss"] for rank in ranks)), loss, rtol=1e-6)
    found = ranks[0]["gradients"]
    expected = dict(network.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        assert torch.allclose(found[name], cast(Tensor, parameter.grad), rtol=1e-5, atol=1e-5), name
    again = {name: torch.zeros_like(parameter) for name, parameter in expected.items()}
    dcp.load({"network": again}, checkpoint_id=tmp_path / "saved", no_dist=True)
    for name, parameter in expected.items():
        assert torch.equal(again[name], parameter), name


def on_no_memory(rank: int) -> tuple[str, tuple[int, ...]]:
    network = meta_network(CONFIG)
    experts.apply(network, init_device_mesh("cpu", (2,)))
    with pytest.raises(RequestError, match="2 processes do not divide 7 experts"):
        odd = replace(CONFIG, moe=replace(MIXTURE, num_experts=7))
        experts.apply(meta_network(odd), init_device_mesh("cpu", (2,)))
    network.to_empty(device="cpu")
    stack = cast(Any, mixture(network).experts.down_proj)
    return str(stack.placements), tuple(stack.to_local().shape)


def test_a_network_without_memory_and_experts_that_do_not_divide():
    assert run_ranks(on_no_memory, 2) == [("(Shard(dim=0),)", (4, 12, 10))] * 2


# One process against transformers.


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe", "qwen3_moe, some dense"])
def test_gradients_are_those_of_transformers(case, tmp_path_factory):
    theirs, directory = saved(case, tmp_path_factory.getbasetemp() / "families")
    ours = load_network(directory).requires_grad_(True)
    tokens = torch.randint(3, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    theirs.zero_grad()
    logits = theirs(tokens).logits
    # Of some weight each, so that every gradient is far above rounding.
    factors = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * factors).sum().backward()
    found = ours(tokens)
    (found * factors).sum().backward()
    assert torch.allclose(found, logits, atol=1e-5 * logits.std().item(), rtol=1e-4)
    expected = {name: cast(Tensor, p.grad) for name, p in theirs.named_parameters()}
    seen = 0
    for number, block in enumerate(ours.model.layers):
        if not isinstance(block.mlp, MoE):
            continue
        stacks: Experts = block.mlp.experts
        name = f"model.layers.{number}.mlp"
        gate, up = expected[f"{name}.experts.gate_up_proj"].chunk(2, dim=1)
        pairs = {
            "gate": (stacks.gate_proj, gate),
            "up": (stacks.up_proj, up),
            "down": (stacks.down_proj, expected[f"{name}.experts.down_proj"]),
            "router": (block.mlp.router.weight, expected[f"{name}.gate.weight"]),
        }
        for what, (mine, their) in pairs.items():
            seen += 1
            scale = float(their.abs().max())
            assert scale > 0 and torch.allclose(
                cast(Tensor, mine.grad), their, atol=1e-5 * scale, rtol=1e-4
            ), what
    assert seen == 4 * sum(ours.config.is_moe(layer) for layer in range(ours.config.num_layers))


def test_the_same_twice_to_the_bit():
    once, twice = (layer(CONFIG, torch.float32, (), slice(None), spread=False) for _ in range(2))
    assert all(torch.equal(once[name], twice[name]) for name in once)
