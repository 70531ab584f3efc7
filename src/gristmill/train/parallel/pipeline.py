"""A pipeline: each process has some of the layers, and micro-batches of a step's rows travel through them.

Schedules and transport are torch.distributed.pipelining's: GPipe (Huang et al. 2019), 1F1B and interleaved 1F1B
(Narayanan et al. 2021), zero-bubble (Qi et al. 2023, their ZB1P). Only activations [b, T, D] and their gradients are
sent. Tokens, positions, documents and targets are functions of the step, so every process has them already; and so
every shape is known beforehand, and nothing is inferred by a trial run.

Shapes: B rows, b rows of a micro-batch, T tokens, D hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from gristmill.errors import RequestError
from gristmill.model import Transformer
from gristmill.train.parallel.layout import Schedule

Judge = Callable[[Transformer, Tensor, Tensor], Tensor]

_OF_ONE_STAGE = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
_OF_MORE = {
    "interleaved-1f1b": ScheduleInterleaved1F1B,
    "zero-bubble": ScheduleInterleavedZeroBubble,
}


def spans(num_layers: int, stages: int) -> list[range]:
    """The layers of each stage, contiguous, none empty.

    The embedding and the head count as a layer each, so that the first and the last stage get fewer where that
    balances; what does not divide goes to the first, the last, then the second stage and those after it.
    Raises RequestError when there are fewer layers than stages.
    """
    if num_layers < stages:
        raise RequestError(
            f"a pipeline of {stages} stages needs as many layers, and the model has {num_layers}: lower layout.pp, "
            'or take a schedule with one stage a process ("gpipe" or "1f1b")'
        )
    even, left = divmod(num_layers + 2, stages)
    sizes = [even] * stages
    for stage in [0, stages - 1, *range(1, stages - 1)][:left]:
        sizes[stage] += 1
    sizes[0] -= 1
    sizes[-1] -= 1
    ends = [sum(sizes[: stage + 1]) for stage in range(stages)]
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def part(network: Transformer, stage: int, stages: int) -> Transformer:
    """The network with what stage `stage` of `stages` keeps, in place; all else is None and frees its memory.

    The first stage keeps the embeddings, the last the final norm and the head. Names stay those of the whole network.
    Raises RequestError for tied embeddings and for fewer layers than stages.
    """
    if network.config.tie_embeddings and stages > 1:
        raise RequestError(
            "a pipeline cannot tie embeddings, which would be a weight of its first and last stage: "
            "set tie_embeddings = false, or layout.pp = 1"
        )
    model = network.model
    kept = spans(network.config.num_layers, stages)[stage]
    for layer in range(network.config.num_layers):
        if layer not in kept:
            model.layers[layer] = cast(nn.Module, None)
    if stage > 0:
        for name in [name for name, _ in model.named_children() if name.startswith("embed_")]:
            setattr(model, name, None)
    if stage < stages - 1:
        cast(Any, model).norm = None
        cast(Any, network).lm_head = None
    return network


class Pipeline:
    """This process's stages, and what moves micro-batches through them.

    parts: of stages rank, rank + ranks, ...: one for "gpipe" and "1f1b", two for "interleaved-1f1b" and "zero-bubble".
    They may be wrapped in fully_shard already (each block and the part itself). mesh: the 1-D mesh, or the group, of
    the pipeline's processes. tp: how many processes the tokens of an activation are split over (tensor parallel).
    Raises RequestError when the schedule cannot run that number of micro-batches.
    """

    def __init__(
        self,
        parts: list[Transformer],
        mesh: DeviceMesh | dist.ProcessGroup,
        schedule: Schedule,
        micro_batches: int,
        device: torch.device,
        *,
        tp: int = 1,
    ) -> None:
        self._group = mesh.get_group() if isinstance(mesh, DeviceMesh) else mesh
        self._ranks = dist.get_world_size(self._group)
        self._parts, self._schedule, self._device, self._tp = parts, schedule, device, tp
        self._micro_batches = micro_batches
        self._built: dict[bool, tuple[tuple[Any, ...], Any]] = {}
        _check(schedule, self._ranks, micro_batches)
        for own in parts:
            cast(Any, own).forward = partial(self._forward, own)
            if isinstance(own, FSDPModule):
                # Or every micro-batch would gather each block again.
                own.set_reshard_after_forward(False)

    def step(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        segments_BT: Tensor | None,
        targets_BT: Tensor,
        *,
        judge: Judge,
        dtype: torch.dtype,
    ) -> float:
        """Add the gradients of the rows' summed loss to the parts' parameters; the loss, on every process.

        All processes of the pipeline give the same rows, int64 [B, T]. judge(part, hidden [b, T, D], targets [b, T])
        is the summed loss of a micro-batch; it runs on the last stage. dtype: of activations.
        Raises RequestError when the micro-batches do not divide the rows.
        """
        if len(tokens_BT) % self._micro_batches:
            raise RequestError(
                f"micro_batches = {self._micro_batches} does not divide the {len(tokens_BT)} rows of a process's batch"
            )
        return self._through(True, (tokens_BT, positions_BT, segments_BT, targets_BT), judge, dtype)

    @torch.no_grad()
    def evaluate(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        segments_BT: Tensor | None,
        targets_BT: Tensor,
        *,
        judge: Judge,
        dtype: torch.dtype,
    ) -> float:
        """The summed loss of any number of rows, on every process, without gradients. Arguments as in `step`."""
        # Always the same number of micro-batches, so that other processes that share experts or shards keep in step;
        # what lacks is rows without targets.
        lacking = (
            -len(tokens_BT) % self._micro_batches or (len(tokens_BT) == 0) * self._micro_batches
        )
        rows = (
            _more_rows(tokens_BT, lacking, 0),
            _more_rows(positions_BT, lacking, 0),
            None if segments_BT is None else _more_rows(segments_BT, lacking, 0),
            _more_rows(targets_BT, lacking, -100),
        )
        return self._through(False, rows, judge, dtype)

    def _through(
        self,
        training: bool,
        rows: tuple[Tensor, Tensor, Tensor | None, Tensor],
        judge: Judge,
        dtype: torch.dtype,
    ) -> float:
        tokens_BT, positions_BT, segments_BT, targets_BT = rows
        self._judge, self._dtype = judge, dtype
        B, T = tokens_BT.shape
        schedule = self._schedule_for(training, (B, T, dtype))
        more = {"positions_BT": positions_BT, "targets_BT": targets_BT}
        if segments_BT is not None:
            more["segments_BT"] = segments_BT
        first = self._parts[0].model.embed_tokens is not None
        losses: list[Tensor] = []
        run = schedule.step if training else schedule.eval
        run(
            *([tokens_BT] if first else []),
            target=targets_BT,  # torch wants them for its loss function, which has nothing left to do
            losses=losses,
            return_outputs=False,
            **more,
        )
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for loss in losses:
            total += loss.detach()
        dist.broadcast(total, group=self._group, group_src=self._ranks - 1)
        return total.item()

    def _forward(
        self,
        own: Transformer,
        x: Tensor,
        *,
        positions_BT: Tensor,
        targets_BT: Tensor,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """What a stage computes: activations for the next stage, or the summed loss.

        The loss is computed in here, not in torch's loss function, so that FSDP sees the head's use as the part's own.
        """
        hidden = Transformer.hidden(
            own, x, positions_BT=positions_BT, segments_BT=segments_BT, dtype=self._dtype
        )
        out = hidden if own.lm_head is None else self._judge(own, hidden, targets_BT)
        # The zero-bubble schedule detaches in place what a stage returns, which autograd refuses for views.
        return out.clone() if out._is_view() else out

    def _schedule_for(self, training: bool, shape: tuple[int, int, torch.dtype]) -> Any:
        """torch's schedule for a shape of batch (B, T, dtype). The last ones of training and of evaluation are kept."""
        if training not in self._built or self._built[training][0] != shape:
            self._built[training] = (shape, self._build(*shape))
        return self._built[training][1]

    def _build(self, rows: int, tokens: int, dtype: torch.dtype) -> Any:
        config = self._parts[0].config
        b = rows // self._micro_batches
        made = partial(torch.empty, device="meta")
        tokens_bT = made(b, tokens, dtype=torch.int64)
        x_bTD = made(b, tokens // self._tp, config.hidden_size, dtype=dtype, requires_grad=True)
        loss = made((), requires_grad=True)
        stages = [
            PipelineStage(
                own,
                dist.get_rank(self._group) + number * self._ranks,
                len(self._parts) * self._ranks,
                self._device,
                input_args=x_bTD if own.model.embed_tokens is None else tokens_bT,
                output_args=x_bTD if own.lm_head is None else loss,
                group=self._group,
            )
            for number, own in enumerate(self._parts)
        ]
        settings: dict[str, Any] = {"loss_fn": lambda loss, _: loss, "scale_grads": False}
        if self._schedule in _OF_ONE_STAGE:
            (stage,) = stages
            return _OF_ONE_STAGE[self._schedule](stage, self._micro_batches, **settings)
        return _OF_MORE[self._schedule](stages, self._micro_batches, **settings)


def _check(schedule: Schedule, ranks: int, micro_batches: int) -> None:
    if schedule == "1f1b" and micro_batches < ranks:
        raise RequestError(
            f'schedule "1f1b" of {ranks} processes needs at least {ranks} micro-batches: raise micro_batches '
            f'from {micro_batches} to {ranks}, or set layout.schedule = "gpipe"'
        )
    if schedule in _OF_MORE and (micro_batches % ranks or micro_batches < ranks):
        near = max(1, round(micro_batches / ranks)) * ranks
        raise RequestError(
            f'schedule "{schedule}" of {ranks} processes needs a multiple of {ranks} micro-batches: '
            f"set micro_batches from {micro_batches} to {near}"
        )


def _more_rows(rows_BT: Tensor, count: int, value: int) -> Tensor:
    return F.pad(rows_BT, (0, 0, 0, count), value=value)
