"""A network over the processes of a mesh, or on one alone: how a batch goes through it, and what it sums to.

Every process is given the whole step's batch or its rows of it; the sums of loss, targets and metrics are made over
all, so that every process sees the same numbers and decides the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils._pytree import tree_leaves, tree_map

from gristmill.errors import RequestError
from gristmill.model import Transformer
from gristmill.train.parallel.layout import Mesh
from gristmill.train.parallel.leaves import Leaf, leaves
from gristmill.train.parallel.ring import zigzag


class Rows(NamedTuple):
    """Rows of tokens and what is to be predicted, int64 [rows, tokens] each: a batch that every layout can split."""

    tokens: Tensor
    targets: Tensor  # -100: nothing
    positions: Tensor  # of each token in its row, or in its document where `segments` are given
    segments: Tensor | None  # the number of the document within the row


class Sums(NamedTuple):
    loss: float
    targets: int
    more: dict[str, float]


class Spread:
    """parts: the network, or this process's stages of a pipeline. micro_batches: pieces of a batch."""

    def __init__(
        self,
        parts: list[Transformer],
        mesh: Mesh | None = None,
        *,
        dtype: torch.dtype,
        micro_batches: int = 1,
    ) -> None:
        self.parts, self.mesh, self.dtype, self.micro_batches = parts, mesh, dtype, micro_batches
        self.leaves: list[Leaf] = leaves(parts)
        self.device = self.leaves[0].local.device if mesh is None else mesh.device
        self.pipeline = None
        if mesh is not None and mesh.layout.pp > 1:
            from gristmill.train.parallel.pipeline import Pipeline  # a second of imports

            layout = mesh.layout
            self.pipeline = Pipeline(
                parts, mesh.dims["pp"], layout.schedule, micro_batches, mesh.device, tp=layout.tp
            )

    @property
    def network(self) -> Transformer:
        """The whole network, or the one stage of it that is here."""
        return self.parts[0]

    @property
    def stages(self) -> int:
        return self.mesh.layout.pp if self.mesh else 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.mesh is None or self.mesh.first

    def backward(self, objective: Any, batch: Any) -> Sums:
        """Add the gradients of the summed loss of this process's rows; the sums are over all processes' rows."""
        batch = self._share(batch)
        if self.pipeline is not None:
            made_here = self._through_pipeline(self.pipeline.step, objective, batch)
            for leaf in self.leaves:
                leaf.take_gradient()
            return self._total(made_here)
        made: list[Sums] = []
        pieces = _split(batch, self.micro_batches)
        for number, piece in enumerate(pieces, 1):
            if isinstance(self.network, FSDPModule):
                self.network.set_requires_gradient_sync(number == len(pieces))
            loss, targets, more = objective.loss(self.network, piece, self.dtype)
            loss.backward()
            made.append(Sums(loss.item(), targets, more))
        for leaf in self.leaves:
            leaf.take_gradient()
        return self._total(_added(made))

    @torch.no_grad()
    def judge(self, objective: Any, batch: Any) -> Sums:
        """The sums of a batch that every process was given whole, without gradients."""
        if self.mesh is not None:
            rows, row = self.mesh.layout.rows, self.mesh.row
            if isinstance(batch, Rows):
                batch = _filled(batch, -len(batch.tokens) % rows)
            batch = _map(lambda t: t[row::rows], batch)
        batch = self._share(batch)
        if self.pipeline is not None:
            return self._total(self._through_pipeline(self.pipeline.evaluate, objective, batch))
        loss, targets, more = objective.loss(self.network, batch, self.dtype)
        if isinstance(self.network, FSDPModule):
            self.network.reshard()  # or the next forward pass would use what was gathered for this one
        return self._total(Sums(loss.item(), targets, more))

    def _share(self, batch: Any) -> Any:
        """This process's tokens of every row, on its device."""
        mesh = self.mesh
        if mesh is not None and mesh.layout.cp > 1:
            if not isinstance(batch, Rows):
                raise RequestError(
                    "context parallelism is for pretraining alone: set layout.cp = 1"
                )
            mine = zigzag(batch.tokens.shape[1], mesh.layout.cp, mesh.at("cp"))
            batch = _map(lambda t: t[:, mine].contiguous(), batch)
        return _map(lambda t: t.to(self.device), batch)

    def _through_pipeline(self, go: Callable[..., float], objective: Any, batch: Any) -> Sums:
        if not isinstance(batch, Rows):
            raise RequestError("pipelines are for pretraining alone: set layout.pp = 1")
        loss = go(
            batch.tokens,
            batch.positions,
            batch.segments,
            batch.targets,
            judge=objective.judge,
            dtype=self.dtype,
        )
        return Sums(float(loss), *objective.count(batch.targets))

    def _total(self, sums: Sums) -> Sums:
        """Over all processes; those that computed the same loss count once."""
        if self.mesh is None:
            return sums
        names = sorted(sums.more)
        numbers = [sums.loss, float(sums.targets), *(sums.more[name] for name in names)]
        total = torch.tensor(numbers, dtype=torch.float64)
        if not self.mesh.speaks:
            total.zero_()
        total = total.to(self.device)
        dist.all_reduce(total)
        loss, targets, *rest = total.tolist()
        return Sums(loss, round(targets), dict(zip(names, rest, strict=True)))

    def agree(self, value: float) -> float:
        """The first process's value, on all."""
        if self.mesh is None:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0)
        return float(told)


def _filled(batch: Rows, lacking: int) -> Rows:
    """With rows that have no targets, so that every process has one: none may stay away from what all do."""
    if not lacking:
        return batch
    more = _map(lambda t: t[:1].expand(lacking, -1), batch)
    more = more._replace(targets=torch.full_like(more.targets, -100))
    return tree_map(lambda a, b: torch.cat((a, b)) if isinstance(a, Tensor) else a, batch, more)


def _map(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    return tree_map(lambda t: function(t) if isinstance(t, Tensor) else t, batch)


def _split(batch: Any, pieces: int) -> list[Any]:
    """A batch in equal pieces of its rows."""
    if pieces == 1:
        return [batch]
    tensors = [t for t in tree_leaves(batch) if isinstance(t, Tensor)]
    if not tensors or len(tensors[0]) % pieces:
        rows = len(tensors[0]) if tensors else 0
        raise RequestError(
            f"micro_batches = {pieces} does not divide the {rows} rows of a process's batch"
        )
    size = len(tensors[0]) // pieces
    return [_map(lambda t, at=at: t[at : at + size], batch) for at in range(0, size * pieces, size)]


def _added(made: list[Sums]) -> Sums:
    more = {name: sum(s.more[name] for s in made) for name in made[0].more}
    return Sums(sum(s.loss for s in made), sum(s.targets for s in made), more)
