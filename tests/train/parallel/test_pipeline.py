"""A pipeline's loss and gradients are those of the whole network in one process."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from gristmill.errors import RequestError
from gristmill.model import ModelConfig, Transformer
from gristmill.model.init import generator_for
from gristmill.model.transformer import meta_network
from gristmill.train.loss import linear_cross_entropy
from gristmill.train.parallel import tensor
from gristmill.train.parallel.layout import Schedule
from gristmill.train.parallel.pipeline import Pipeline, part, spans
from tests.train.parallel.processes import run_ranks

VOCABULARY, MICRO_BATCHES = 40, 4
CPU = torch.device("cpu")
SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b", "interleaved-1f1b", "zero-bubble")

QWEN = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_layers=5,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    intermediate_size=32,
    max_seq_len=12,
    tie_embeddings=False,
)
SLIDING = replace(
    QWEN,
    num_layers=4,
    layer_types=("sliding_attention", "full_attention") * 2,
    sliding_window=3,
    norm="rms_plus_one",
    norm_placement="both",
    embedding_scale=4.0,
    logit_softcap=20.0,
)
LEARNED = replace(
    QWEN,
    num_layers=4,
    num_kv_heads=4,
    positions="learned",
    norm="layer",
    qk_norm=False,
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    gated=False,
    activation="gelu_tanh",
)
DEEP = replace(QWEN, num_layers=8)
Batch = tuple[Tensor, Tensor, Tensor | None, Tensor]


@dataclass(frozen=True)
class Case:
    config: ModelConfig
    rows: int = 8
    tokens: int = 12
    documents: bool = True

    def network(self) -> Transformer:
        network = Transformer(self.config)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator_for(3, name))
                parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.25 * noise)
        return network

    def batch(self) -> Batch:
        """Micro-batches have different numbers of targets, and one has none."""
        draw, size = torch.Generator().manual_seed(7), (self.rows, self.tokens)
        tokens = torch.randint(VOCABULARY, size, generator=draw)
        targets = torch.randint(VOCABULARY, size, generator=draw)
        for row in range(self.rows):
            targets[row, (row * 5) % self.tokens :] = -100
        targets[2:4] = -100
        places = torch.arange(self.tokens).expand(size)
        if not self.documents:
            return tokens, places, None, targets
        begins = torch.rand(size, generator=draw) < 0.15
        start = torch.where(begins, places, 0).cummax(1).values
        return tokens, places - start, begins.cumsum(1), targets

    @cache  # noqa: B019
    def expected(self) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients in one process."""
        network = self.network()
        tokens, positions, segments, targets = self.batch()
        logits = network(tokens, positions_BT=positions, segments_BT=segments)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        loss.backward()
        return loss.item(), {name: cast(Tensor, p.grad) for name, p in network.named_parameters()}

    def parts(self, schedule: Schedule, rank: int, ranks: int) -> list[Transformer]:
        stages = ranks * (1 if schedule in ("gpipe", "1f1b") else 2)
        return [part(self.network(), stage, stages) for stage in range(rank, stages, ranks)]

    def check(self, loss: float, parts: list[Transformer], group: Any) -> None:
        """Loss, gradients by name, and that every parameter is on one process of the group."""
        expected, gradients = self.expected()
        near(loss, expected)
        here = [pair for own in parts for pair in own.named_parameters()]
        for name, parameter in here:
            grad = parameter.grad
            grad = grad.full_tensor() if isinstance(grad, DTensor) else grad
            assert grad is not None, name
            wrong = (grad - gradients[name]).abs().max().item()
            assert wrong <= 1e-5 * max(1.0, gradients[name].abs().max().item()), (name, wrong)
        names: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(names, [name for name, _ in here], group)
        assert sorted(name for theirs in names for name in theirs) == sorted(gradients)


def near(loss: float, expected: float) -> None:
    assert abs(loss - expected) <= 1e-5 * expected


def judge(network: Transformer, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    weight, group = network.head.weight, None
    if isinstance(weight, DTensor):
        group, weight = weight.device_mesh.get_group(), weight.to_local()
    return linear_cross_entropy(
        hidden_BTD.flatten(0, 1),
        weight,
        targets_BT.flatten(),
        softcap=network.config.logit_softcap,
        group=group,
    )[0]


HOW: dict[str, Any] = {"judge": judge, "dtype": torch.float32}


def through_each_schedule(case: Case) -> None:
    group = cast(dist.ProcessGroup, dist.group.WORLD)
    for schedule in SCHEDULES:
        parts = case.parts(schedule, dist.get_rank(), dist.get_world_size())
        line = Pipeline(parts, group, schedule, MICRO_BATCHES, CPU)
        case.check(line.step(*case.batch(), **HOW), parts, group)


def steps_and_evaluations(case: Case) -> None:
    """Each leaves nothing behind for the next; gradients are added to."""
    group = cast(dist.ProcessGroup, dist.group.WORLD)
    rows = case.batch()
    for schedule in SCHEDULES:
        parts = case.parts(schedule, dist.get_rank(), dist.get_world_size())
        parameters = [p for own in parts for p in own.parameters()]
        line = Pipeline(parts, group, schedule, MICRO_BATCHES, CPU)
        fewer = replace(case, rows=5)  # the micro-batches do not divide them
        near(line.evaluate(*fewer.batch(), **HOW), fewer.expected()[0])
        assert line.evaluate(*replace(case, rows=0).batch(), **HOW) == 0.0
        assert all(p.grad is None for p in parameters)
        loss = line.step(*rows, **HOW)
        near(line.evaluate(*rows, **HOW), loss)
        case.check(loss, parts, group)
        once = [cast(Tensor, p.grad).clone() for p in parameters]
        line.step(*rows, **HOW)
        for grad, parameter in zip(once, parameters, strict=True):
            torch.testing.assert_close(parameter.grad, 2 * grad, rtol=1e-5, atol=1e-5)
            parameter.grad = None
        shorter = replace(case, rows=4, tokens=7)
        shorter.check(line.step(*shorter.batch(), **HOW), parts, group)


def with_shards(case: Case) -> None:
    """2 stages x 2 shards: each shard is dealt every second row, and gradients are summed."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    dealt = mesh.get_local_rank("dp")
    tokens, positions, segments, targets = case.batch()
    assert segments is not None
    mine = (tokens[dealt::2], positions[dealt::2], segments[dealt::2], targets[dealt::2])
    for schedule in SCHEDULES:
        parts = case.parts(schedule, mesh.get_local_rank("pp"), 2)
        for own in parts:
            shard(own, mesh["dp"])
        line = Pipeline(parts, mesh["pp"], schedule, MICRO_BATCHES, CPU)
        evaluated = line.evaluate(*mine, **HOW)
        loss = line.step(*mine, **HOW)
        near(loss, evaluated)
        case.check(of_all(loss, mesh["dp"]), parts, mesh["pp"].get_group())
        # What an optimizer does to the shards is seen by the next gather, after a step and an evaluation.
        shards = [cast(DTensor, p).to_local().detach() for own in parts for p in own.parameters()]
        held = [shard.clone() for shard in shards]
        torch._foreach_zero_(shards)
        near(line.evaluate(*mine, **HOW), math.log(VOCABULARY) * int((mine[3] >= 0).sum()))
        torch._foreach_copy_(shards, held)
        near(line.step(*mine, **HOW), loss)


def shard(own: Transformer, mesh: DeviceMesh) -> None:
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in (*(block for block in own.model.layers if block is not None), own):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def of_all(loss: float, mesh: DeviceMesh) -> float:
    total = torch.tensor(loss, dtype=torch.float64)
    dist.all_reduce(total, group=mesh.get_group())
    return total.item()


def with_split_matrices(case: Case) -> None:
    """2 stages x 2 pieces of every matrix: activations are sent in pieces of their tokens."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "tp"))
    for schedule in SCHEDULES:
        parts = case.parts(schedule, mesh.get_local_rank("pp"), 2)
        for own in parts:
            tensor.apply(own, mesh["tp"])
        line = Pipeline(parts, mesh["pp"], schedule, MICRO_BATCHES, CPU, tp=2)
        case.check(line.step(*case.batch(), **HOW), parts, mesh["pp"].get_group())


def refusals() -> None:
    case, group = Case(QWEN), cast(dist.ProcessGroup, dist.group.WORLD)
    with pytest.raises(RequestError, match="raise micro_batches from 1 to 2"):
        Pipeline([], group, "1f1b", 1, CPU)
    with pytest.raises(RequestError, match=r"multiple of 2 .* from 3 to 4"):
        Pipeline([], group, "interleaved-1f1b", 3, CPU)
    with pytest.raises(RequestError, match=r"multiple of 2 .* from 1 to 2"):
        Pipeline([], group, "zero-bubble", 1, CPU)
    parts = case.parts("gpipe", dist.get_rank(), 2)
    with pytest.raises(RequestError, match="3 does not divide the 8 rows"):
        Pipeline(parts, group, "gpipe", 3, CPU).step(*case.batch(), **HOW)


# One set of processes for all that is checked on as many: to start them takes most of the time.


def on_two(rank: int) -> None:
    refusals()
    steps_and_evaluations(Case(QWEN))
    through_each_schedule(Case(SLIDING, documents=False))
    through_each_schedule(Case(LEARNED))


def on_four(rank: int) -> None:
    through_each_schedule(Case(DEEP))
    with_shards(Case(QWEN, rows=16))
    with_split_matrices(Case(QWEN))


def test_two_processes_equal_one() -> None:
    run_ranks(on_two, 2, timeout=120)


def test_four_processes_equal_one_with_fsdp_and_tensor_parallelism_too() -> None:
    run_ranks(on_four, 4, timeout=120)


def test_what_cannot_be_parted_is_refused() -> None:
    tied = meta_network(replace(QWEN, tie_embeddings=True))
    with pytest.raises(RequestError, match="tie_embeddings = false"):
        part(tied, 0, 2)
    with pytest.raises(RequestError, match=r"pipeline of 6 stages .* model has 5"):
        part(meta_network(QWEN), 0, 6)


@given(st.integers(1, 200), st.integers(1, 64))
def test_spans_share_out_the_layers(num_layers: int, stages: int) -> None:
    if num_layers < stages:
        with pytest.raises(RequestError, match="lower layout"):
            spans(num_layers, stages)
        return
    made = spans(num_layers, stages)
    assert [layer for span in made for layer in span] == list(range(num_layers))
    assert len(made) == stages and all(len(span) > 0 for span in made)
    # With embedding and head counted, no stage has over one more than another.
    work = [len(span) for span in made]
    work[0] += 1
    work[-1] += 1
    assert max(work) - min(work) <= 1


@pytest.mark.parametrize(
    ("num_layers", "stages", "sizes"),
    [(8, 2, [4, 4]), (8, 4, [2, 2, 2, 2]), (6, 4, [1, 2, 2, 1]), (32, 4, [8, 8, 8, 8])],
)
def test_spans_by_hand(num_layers: int, stages: int, sizes: list[int]) -> None:
    assert [len(span) for span in spans(num_layers, stages)] == sizes


@pytest.mark.parametrize("config", [QWEN, LEARNED])
def test_parts_of_a_network_without_memory(config: ModelConfig) -> None:
    names = [name for name, _ in meta_network(config).named_parameters()]
    found: list[str] = []
    for stage in range(4):
        own = part(meta_network(config), stage, 4)
        assert all(parameter.is_meta for parameter in own.parameters())
        mine = [name for name, _ in own.named_parameters()]
        assert any("embed_" in name for name in mine) == (stage == 0)
        assert any(name == "lm_head.weight" for name in mine) == (stage == 3)
        assert any(name == "model.norm.weight" for name in mine) == (stage == 3)
        found += mine
    assert sorted(found) == sorted(names)
