"""A ring of ranks attends as one process does: outputs, gradients, and a whole network's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from gristmill.errors import RequestError
from gristmill.model import LatentConfig, ModelConfig, RopeScaling, Transformer, attend
from gristmill.model.attention import Context
from gristmill.model.init import generator_for
from gristmill.train.parallel import ring
from gristmill.train.parallel.ring import RingAttention, zigzag
from tests.tiny_model import randomized
from tests.train.parallel.processes import run_ranks

T = 32  # tokens of a row, on all ranks
CONFIG = ModelConfig(
    vocab_size=29,
    hidden_size=24,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=32,
    max_seq_len=T,
)


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype = torch.float64
    kv_heads: int = 2
    value_dim: int = 8
    window: int | None = None
    documents: tuple[tuple[int, ...], ...] = ()  # lengths, a tuple for each row
    softcap: float | None = None
    sinks: bool = False
    tile: int = 512

    def tensors(self) -> list[Tensor]:
        """q, k, v, the gradient of the output, and sinks."""
        shapes = {
            "q": (2, CONFIG.num_heads, T, 8),
            "k": (2, self.kv_heads, T, 8),
            "v": (2, self.kv_heads, T, self.value_dim),
            "grad": (2, CONFIG.num_heads, T, self.value_dim),
            "sinks": (CONFIG.num_heads,),
        }
        generators = {name: generator_for(0, name) for name in shapes}
        return [
            2 * torch.randn(shape, generator=generators[name]).to(self.dtype)
            for name, shape in shapes.items()
        ]

    def places(self) -> tuple[Tensor, Tensor | None]:
        """Positions and segments as packing numbers them, [2, T]."""
        if not self.documents:
            return torch.arange(T).expand(2, T), None
        positions = [[p for n in lengths for p in range(n)] for lengths in self.documents]
        segments = [[s for s, n in enumerate(row) for _ in range(n)] for row in self.documents]
        return torch.tensor(positions), torch.tensor(segments)

    def mask(self) -> Tensor:
        """Written out pair by pair, [2, 1, T, T]."""
        mask = torch.zeros(2, 1, T, T, dtype=torch.bool)
        for row in range(2):
            ends = list(accumulate(self.documents[row] if self.documents else (T,)))
            for query in range(T):
                begin = max([0, *(end for end in ends if end <= query)])
                if self.window is not None:
                    begin = max(begin, query - self.window + 1)
                mask[row, 0, query, begin : query + 1] = True
        return mask


CASES = {
    "causal": Case(),
    "causal, fp32": Case(dtype=torch.float32),
    "a head each": Case(kv_heads=6),
    "one head for all, other values": Case(kv_heads=1, value_dim=5),
    "small tiles": Case(tile=3),
    "window": Case(window=5, tile=3),
    "window of one": Case(window=1),
    "window over all": Case(window=T),
    "documents on chunk ends": Case(documents=((8, 8, 16), (4, 4, 4, 20)), tile=3),
    "documents across chunks": Case(documents=((3, 14, 15), (31, 1)), tile=3),
    "documents of one token": Case(documents=((1,) * T, (1, 1, 30))),
    "documents, window, fp32": Case(torch.float32, documents=((9, 23), (T,)), window=4, tile=2),
    "softcap": Case(torch.float32, softcap=1.5),
    "sinks": Case(torch.float32, sinks=True, tile=3),
    "softcap, sinks, documents, window": Case(
        torch.float32, documents=((5, 27), (20, 12)), window=6, softcap=2.0, sinks=True
    ),
}


def attend_in_ring(rank: int, world: int) -> dict[str, list[Tensor]]:
    """Of each case: this rank's output and gradients of q, k, v, and of the sinks."""
    assert dist.group.WORLD is not None
    around = RingAttention(dist.group.WORLD)
    here = zigzag(T, world, rank)
    results = {}
    for name, case in CASES.items():
        ring._TILE = case.tile
        positions, segments = (None if x is None else x[:, here] for x in case.places())
        assert positions is not None
        context = Context(None, None, positions, segments, case.window, None)
        *tensors, sinks = case.tensors()
        q, k, v, grad = (x[:, :, here] for x in tensors)
        leaves = [q, k, v, *([sinks] if case.sinks else [])]
        for leaf in leaves:
            leaf.requires_grad_()
        config = replace(CONFIG, attention_softcap=case.softcap)
        out = around(q, k, v, context, config, sinks if case.sinks else None)
        out.backward(grad)
        results[name] = [out.detach(), *(leaf.grad for leaf in leaves)]
    return results


@cache
def ring_results(world: int) -> list[dict[str, list[Tensor]]]:
    return run_ranks(attend_in_ring, world, world)


def alone(case: Case) -> list[Tensor]:
    """The same on one process."""
    q, k, v, grad, sinks = case.tensors()
    leaves = [q, k, v, *([sinks] if case.sinks else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    if case.softcap is None and not case.sinks:
        out = F.scaled_dot_product_attention(q, k, v, case.mask(), enable_gqa=True)
    else:
        scale = CONFIG.score_scale
        out = attend(q, k, v, case.mask(), scale, case.softcap, sinks if case.sinks else None)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("world", (2, 4))
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_those_of_one_process(name: str, world: int) -> None:
    case = CASES[name]
    ranks = [result[name] for result in ring_results(world)]
    order = torch.cat([zigzag(T, world, rank) for rank in range(world)]).argsort()
    expected = alone(case)
    tolerance = 1e-10 if case.dtype == torch.float64 else 1e-5
    for number, what in enumerate(("output", "dq", "dk", "dv", "dsinks")[: len(expected)]):
        parts = [rank[number] for rank in ranks]
        found = sum(parts) if what == "dsinks" else torch.cat(parts, 2)[:, :, order]
        assert isinstance(found, Tensor) and found.dtype == case.dtype
        error = (found - expected[number]).abs().max() / expected[number].abs().max().clamp(min=1)
        assert error <= tolerance, f"{what} is off by {error:.1e}"


def in_two_rings(rank: int) -> tuple[int, Tensor]:
    """The causal case in a ring of ranks 0 and 2, and in one of 1 and 3."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("cp", "tp"))
    place = mesh.get_local_rank("cp")
    here = zigzag(T, 2, place)
    q, k, v, _, _ = (x[:, :, here] if x.ndim == 4 else x for x in Case().tensors())
    context = Context(None, None, here.expand(2, -1), None, None, None)
    return place, RingAttention(mesh.get_group("cp"))(q, k, v, context, CONFIG, None)


def test_rings_beside_each_other() -> None:
    expected = alone(Case())[0]
    for place, out in run_ranks(in_two_rings, 4):
        torch.testing.assert_close(out, expected[:, :, zigzag(T, 2, place)], atol=1e-10, rtol=0)


def with_poison(rank: int) -> Tensor:
    """Attention when the last chunk of the row, which only its own queries see, is NaN."""
    assert dist.group.WORLD is not None
    here = zigzag(T, 4, rank)
    q, k, v, _, _ = (x[:, :, here] if x.ndim == 4 else x for x in Case().tensors())
    k[:, :, here >= T - T // 8] = float("nan")
    context = Context(None, None, here.expand(2, -1), None, None, None)
    return RingAttention(dist.group.WORLD)(q, k, v, context, CONFIG, None)


def test_blocks_that_nothing_sees_are_not_computed() -> None:
    # 0 · NaN is NaN: masking would not keep it away.
    for rank, out in enumerate(run_ranks(with_poison, 4)):
        poisoned = zigzag(T, 4, rank) >= T - T // 8
        assert out[:, :, ~poisoned].isfinite().all()
        assert out[:, :, poisoned].isnan().all()


def in_bfloat16(rank: int) -> Tensor:
    """Equal scores and values of 1 over 2048 keys: a sum in bf16 would stop at 256."""
    assert dist.group.WORLD is not None
    here = zigzag(2048, 2, rank)
    ones = torch.ones(1, 1, 1024, 8, dtype=torch.bfloat16)
    context = Context(None, None, here[None], None, None, None)
    k = torch.zeros_like(ones).requires_grad_()
    v = ones.clone().requires_grad_()
    out = RingAttention(dist.group.WORLD)(ones, k, v, context, CONFIG, None)
    out.backward(ones)
    assert v.grad is not None and v.grad.dtype == out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), ones.float(), atol=0.01, rtol=0)
    return v.grad[0, 0, :, 0].double()


def test_sums_in_bfloat16_are_kept_in_fp32() -> None:
    gradients = run_ranks(in_bfloat16, 2)
    first = gradients[0][0]  # of the first value, which all queries share: 1 + 1/2 + ... + 1/2048
    torch.testing.assert_close(first, (1 / torch.arange(1, 2049).double()).sum(), atol=0, rtol=0.01)
    total = sum(g.sum() for g in gradients)
    torch.testing.assert_close(total, torch.tensor(2048.0).double(), atol=0, rtol=0.01)


NETWORKS = {
    "sliding and full": replace(
        CONFIG,
        layer_types=("sliding_attention", "full_attention", "sliding_attention"),
        sliding_window=6,
        attention_softcap=5.0,
    ),
    "sinks": replace(CONFIG, attention_sinks=True, qk_norm=False, tie_embeddings=False),
    "learned positions": replace(CONFIG, positions="learned", num_layers=1),
    "latent": replace(
        CONFIG,
        qk_norm=False,
        num_kv_heads=6,
        rotary_dim=4,
        latent=LatentConfig(query_rank=8, key_value_rank=8, value_head_dim=4),
    ),
}
DOCUMENTS = Case(documents=((3, 14, 15), (31, 1)))


def backward(
    network: Transformer, here: Tensor, documents: bool
) -> tuple[float, dict[str, Tensor]]:
    """The summed loss of the tokens `here` of two rows, and the gradients of all parameters."""
    positions, segments = (DOCUMENTS if documents else Case()).places()
    rows = torch.randint(0, 29, (2, T + 1), generator=generator_for(0, "rows"))
    network.zero_grad()
    hidden = network.hidden(
        rows[:, :-1][:, here],
        positions_BT=positions[:, here],
        segments_BT=None if segments is None else segments[:, here],
    )
    logits, targets = network.logits(hidden), rows[:, 1:][:, here]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss.backward()
    return loss.item(), {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def network_of(config: ModelConfig) -> Transformer:
    return randomized(Transformer(config), 0).double()


def networks_in_ring(rank: int, world: int) -> dict[tuple[str, bool], Any]:
    assert dist.group.WORLD is not None
    results = {}
    for name, config in NETWORKS.items():
        network = network_of(config)
        ring.apply(network, dist.group.WORLD)
        for documents in (False, True):
            loss, gradients = backward(network, zigzag(T, world, rank), documents)
            for gradient in gradients.values():
                dist.all_reduce(gradient)
            results[name, documents] = loss, {n: g.clone() for n, g in gradients.items()}
    return results


@cache
def network_results(world: int) -> list[dict[tuple[str, bool], Any]]:
    return run_ranks(networks_in_ring, world, world)


@pytest.mark.parametrize("documents", (False, True), ids=("rows", "documents"))
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("world", (2, 4))
def test_a_networks_loss_and_gradients(world: int, name: str, documents: bool) -> None:
    loss, gradients = backward(network_of(NETWORKS[name]), torch.arange(T), documents)
    ranks = [result[name, documents] for result in network_results(world)]
    # The last step of the loss, and attention with sinks or a cap, are in fp32 on one process.
    assert sum(found for found, _ in ranks) == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == ranks[0][1].keys()
    for parameter, expected in gradients.items():
        error = (ranks[0][1][parameter] - expected).abs().max() / expected.abs().max()
        assert error <= 1e-5, f"{parameter} is off by {error:.1e}"


@pytest.mark.parametrize("ranks", (1, 2, 3, 8))
def test_zigzag_deals_every_place_once_and_the_same_work(ranks: int) -> None:
    places = [zigzag(48, ranks, rank) for rank in range(ranks)]
    assert torch.cat(places).sort().values.tolist() == list(range(48))
    assert (
        len({int((p + 1).sum()) for p in places}) == 1
    )  # a causal query at place p sees p + 1 keys
    assert all((p.diff() > 0).all() for p in places)


def test_a_row_that_cannot_be_dealt_is_refused() -> None:
    with pytest.raises(RequestError, match="multiple of 8"):
        zigzag(36, 4, 0)


def test_frequencies_that_depend_on_the_rows_end_are_refused() -> None:
    factors = (1.0,) * 4
    scaling = RopeScaling(
        "longrope", 2.0, original_max_seq_len=8, short_factors=factors, long_factors=factors
    )
    network = Transformer(replace(CONFIG, rope_scaling=scaling))
    with pytest.raises(RequestError, match="longrope"):
        ring.apply(network, None)  # type: ignore[arg-type]
