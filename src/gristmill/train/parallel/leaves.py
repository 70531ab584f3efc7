"""Parameters as the optimizer sees them: plain tensors, the part that lies on this process, with a way to the whole.

FSDP2 and tensor parallelism make parameters DTensors over meshes of different shapes, which torch's fused and
foreach optimizers and its clipping refuse to mix. Updates are elementwise, so they work on local parts; only Muon and
what is saved need the whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate


@dataclass(eq=False)
class Leaf:
    """name: global, the same in every layout. local: what the optimizer moves; shares the parameter's memory."""

    name: str
    parameter: nn.Parameter
    local: Tensor

    @property
    def mesh(self) -> DeviceMesh | None:
        """The processes that the parameter is spread over; None: it is whole here."""
        return self.parameter.device_mesh if isinstance(self.parameter, DTensor) else None

    @property
    def shape(self) -> torch.Size:
        """Of the whole."""
        return self.parameter.shape

    @property
    def shards(self) -> int:
        if not isinstance(self.parameter, DTensor):
            return 1
        sizes = zip(self.parameter.device_mesh.shape, self.parameter.placements, strict=True)
        return prod(size for size, placement in sizes if not placement.is_replicate())

    @property
    def splits_matrices(self) -> bool:
        """Whether a matrix of the parameter (the last two dimensions) is spread over processes."""
        if not isinstance(self.parameter, DTensor):
            return False
        matrix = (self.parameter.ndim - 2, self.parameter.ndim - 1)
        return any(p.is_shard(dim) for p in self.parameter.placements for dim in matrix)

    def spread(self, local: Tensor) -> Tensor:
        """A tensor like the local part as the DTensor it is a part of (a plain one where the parameter is)."""
        if not isinstance(self.parameter, DTensor):
            return local
        p = self.parameter
        return DTensor.from_local(
            local, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
        )

    def whole(self, local: Tensor) -> Tensor:
        """The whole tensor of which `local` is this process's part: all processes of the mesh must ask."""
        spread = self.spread(local)
        return spread.full_tensor() if isinstance(spread, DTensor) else spread

    def part(self, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor that all have."""
        if not isinstance(self.parameter, DTensor):
            return whole
        p = self.parameter
        everywhere = [Replicate()] * p.device_mesh.ndim
        spread = DTensor.from_local(whole, p.device_mesh, everywhere, run_check=False)
        return spread.redistribute(placements=p.placements).to_local()

    def take_gradient(self) -> None:
        """Move the parameter's gradient to the local part."""
        p = self.parameter
        if isinstance(p, DTensor):
            grad = p.grad
            if isinstance(
                grad, DTensor
            ):  # that of a norm whose tokens are split is still a sum to be made
                grad = grad.redistribute(placements=p.placements).to_local()
            self.local.grad = grad
            p.grad = None


def leaves(networks: Iterable[nn.Module]) -> list[Leaf]:
    """Of all parameters that are trained, in the networks' order."""
    out = []
    for network in networks:
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                split = isinstance(parameter, DTensor)
                local = parameter.to_local().detach() if split else parameter
                out.append(Leaf(name, parameter, local))
    return out


def norm_of_gradients(all_leaves: list[Leaf], stages: int = 1) -> float:
    """The L2 norm of all gradients together, the same number on every process.

    Each process adds the squares of its own parts, divided by the number of processes that hold the same part.
    stages: of a pipeline, whose processes hold different parameters.
    """
    held = [leaf for leaf in all_leaves if leaf.local.grad is not None]
    norms = torch._foreach_norm([leaf.local.grad for leaf in held if leaf.local.grad is not None])
    if not dist.is_initialized():
        return float(torch.linalg.vector_norm(torch.stack(norms)))
    same = dist.get_world_size() // stages
    squares = torch.stack(norms).double().square()
    copies = torch.tensor(
        [same / leaf.shards for leaf in held], dtype=torch.float64, device=squares.device
    )
    total = (squares / copies).sum()
    dist.all_reduce(total)
    return float(total.sqrt())


def scale_gradients(all_leaves: list[Leaf], factor: float) -> None:
    grads = [leaf.local.grad for leaf in all_leaves if leaf.local.grad is not None]
    torch._foreach_mul_(grads, factor)
