"""Expert parallelism (GShard: Lepikhin et al. 2020), put on from outside: each process keeps some of the experts.

A layer's tokens go to the processes that keep their experts by one exchange and what these say comes back by another,
in pieces as uneven as the routing. Nothing is dropped, unless there is a capacity.

Shapes: N tokens of this process, D hidden_size, E experts, K experts of each token, R rows: one for each token and
expert of it; S processes that rows come from, e experts that are kept here.
"""

from __future__ import annotations

from math import ceil
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from gristmill.errors import RequestError
from gristmill.model import Transformer
from gristmill.model.moe import Experts, MoE, by_expert, summed


def apply(
    network: Transformer, mesh: DeviceMesh | None = None, *, capacity_factor: float | None = None
) -> None:
    """Spread the experts of a network (or of its part of a pipeline) over the 1-D mesh, in place.

    Rank r of n keeps experts [r·E/n, (r+1)·E/n): the stacks become DTensors with Shard(0), of unchanged names, which
    `fully_shard` over another dimension of the same root mesh shards once more. A process's gradients are then those
    of the summed losses of all processes of the mesh. All of them must run every forward and backward pass; a process
    may have no tokens for the others, or none for itself. No mesh: all experts are here, for the capacity alone.

    capacity_factor: an expert answers at most ⌈factor · rows / E⌉ of the mesh's rows of a pass; those of the lowest
    weights, and of these the last ones, are dropped: their tokens pass by the expert (Switch: Fedus et al. 2021).
    Raises RequestError where the mesh does not divide the experts.
    """
    for block in network.model.layers:
        if block is None or not isinstance(block.mlp, MoE):
            continue
        experts = block.mlp.experts
        if mesh is not None:
            if experts.num_experts % mesh.size():
                raise RequestError(
                    f"{mesh.size()} processes do not divide {experts.num_experts} experts"
                )
            for name, parameter in list(experts.named_parameters()):
                part = distribute_tensor(parameter.data, mesh, [Shard(0)], src_data_rank=None)
                experts.register_parameter(name, nn.Parameter(part, parameter.requires_grad))
        group = None if mesh is None else mesh.get_group()
        experts.forward = Exchange(experts, group, capacity_factor)


class Exchange:
    """In place of `Experts.forward`.

    dropped: of this process's rows, how many were dropped since whoever reads it set it to 0 (int64, no dimensions).
    """

    def __init__(
        self, experts: Experts, group: dist.ProcessGroup | None, capacity_factor: float | None
    ) -> None:
        self.experts, self.group, self.capacity_factor = experts, group, capacity_factor
        self.size = 1 if group is None else group.size()
        self.rank = 0 if group is None else group.rank()
        self.dropped = torch.zeros((), dtype=torch.int64)

    def __call__(self, x_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """The weighted sum of what each token's chosen experts say, [N, D]."""
        order_R, counts_E = by_expert(chosen_NK, self.experts.num_experts)
        counts_SE = self._of_all(counts_E)
        arriving_Se = counts_SE.view(self.size, self.size, -1)[:, self.rank]
        if self.capacity_factor is not None:
            capacity = ceil(self.capacity_factor * counts_SE.sum().item() / len(counts_E))
            # All know whether any expert has too many, so all or none go on.
            if (counts_SE.sum(0) > capacity).any():
                weights_R = weights_NK.detach().flatten()[order_R]
                kept_R, arriving_Se = self._within(capacity, weights_R, counts_E, arriving_Se)
                expert_R = chosen_NK.flatten()[order_R[kept_R]]
                order_R, counts_E = order_R[kept_R], expert_R.bincount(minlength=len(counts_E))
                self.dropped = self.dropped.to(kept_R.device) + (~kept_R).sum()
        x_RD = x_ND.index_select(0, order_R // chosen_NK.shape[1])
        leaving, arriving = self._pieces(counts_E, arriving_Se)
        said_RD = self._answers(self._exchanged(x_RD, leaving, arriving), arriving_Se)
        return summed(self._exchanged(said_RD, arriving, leaving), order_R, weights_NK)

    def _answers(self, x_RD: Tensor, arriving_Se: Tensor) -> Tensor:
        """What the experts here say to rows that lie by process and then by expert; in the rows' order."""
        stacks = {name: _here(p).unbind() for name, p in self.experts.named_parameters()}
        order_R = _experts_of(arriving_Se).argsort(stable=True)
        counts = arriving_Se.sum(0).tolist()
        said_RD = self.experts.answers(x_RD.index_select(0, order_R), counts, stacks)
        return torch.zeros_like(said_RD).index_copy(0, order_R, said_RD)

    def _within(
        self, capacity: int, weights_R: Tensor, counts_E: Tensor, arriving_Se: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(which of this process's rows are kept; how many of whose are for the experts here).

        Whoever keeps the expert decides, by the weights of all rows, before these travel.
        """
        leaving, arriving = self._pieces(counts_E, arriving_Se)
        theirs_R, experts_R = (
            self._exchanged(weights_R, leaving, arriving),
            _experts_of(arriving_Se),
        )
        heaviest_R = theirs_R.argsort(descending=True, stable=True)
        order_R = heaviest_R[
            experts_R[heaviest_R].argsort(stable=True)
        ]  # by expert, then by weight
        counts_e = arriving_Se.sum(0)
        first_e = counts_e.cumsum(0) - counts_e
        place_R = torch.arange(len(order_R), device=order_R.device) - first_e[experts_R[order_R]]
        kept_R = torch.empty_like(experts_R, dtype=torch.uint8)
        kept_R[order_R] = (place_R < capacity).to(torch.uint8)
        source_R = torch.arange(self.size, device=kept_R.device).repeat_interleave(
            arriving_Se.sum(1)
        )
        still_Se = torch.zeros_like(arriving_Se)
        still_Se.index_put_((source_R, experts_R), kept_R.long(), accumulate=True)
        return self._exchanged(kept_R, arriving, leaving).bool(), still_Se

    def _of_all(self, counts_E: Tensor) -> Tensor:
        """[S, E]: how many rows each process has for each expert."""
        if self.group is None:
            return counts_E[None]
        counts_SE = counts_E.new_empty(self.size, len(counts_E))
        dist.all_gather(list(counts_SE.unbind()), counts_E, group=self.group)
        return counts_SE

    def _pieces(self, counts_E: Tensor, arriving_Se: Tensor) -> tuple[list[int], list[int]]:
        """How many rows go to, and come from, each process."""
        both = torch.stack((counts_E.view(self.size, -1).sum(1), arriving_Se.sum(1)))
        leaving, arriving = both.tolist()
        return leaving, arriving

    def _exchanged(self, x: Tensor, leaving: list[int], arriving: list[int]) -> Tensor:
        if self.group is None:
            return x
        return cast(Tensor, _Exchanged.apply(x, leaving, arriving, self.group))


class _Exchanged(torch.autograd.Function):
    """Rows to and from the processes of a group; their gradients go the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, leaving: list[int], arriving: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.back = (arriving, leaving, group)
        out = x.new_empty(sum(arriving), *x.shape[1:])
        dist.all_to_all_single(out, x.contiguous(), arriving, leaving, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return _Exchanged.apply(grad, *ctx.back), None, None, None


def _here(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _experts_of(counts_Se: Tensor) -> Tensor:
    """The expert (numbered from the first one here) of each row that arrives, [R]."""
    S, e = counts_Se.shape
    numbers = torch.arange(e, device=counts_Se.device).repeat(S)
    return numbers.repeat_interleave(counts_Se.flatten())
