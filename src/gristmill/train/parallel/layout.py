"""A layout: how many processes a training is spread over, and along what.

The world is replicas x dp x cp x tp x pp processes. Experts (ep) are spread over the dp dimension, so ep divides dp
and adds no processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import PositiveInt, model_validator
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gristmill.errors import RequestError
from gristmill.model import ModelConfig
from gristmill.stage import StageConfig

Schedule = Literal["gpipe", "1f1b", "interleaved-1f1b", "zero-bubble"]


class Layout(StageConfig):
    """Sizes of the dimensions.

    dp: shards of parameters, gradients and optimizer state, each with rows of its own (FSDP). replicas: of the whole
    (HSDP). tp: pieces of every matrix (tensor and sequence parallel). pp: stages of a pipeline. cp: pieces of every
    row (context parallel, a ring). ep: pieces of the experts.
    """

    replicas: PositiveInt = 1
    dp: PositiveInt = 1
    tp: PositiveInt = 1
    pp: PositiveInt = 1
    cp: PositiveInt = 1
    ep: PositiveInt = 1
    schedule: Schedule = "1f1b"  # of a pipeline
    auto: bool = False  # the planner chooses the sizes; also written layout = "auto"

    @model_validator(mode="before")
    @classmethod
    def _word(cls, given: Any) -> Any:
        return {"auto": True} if given == "auto" else given

    @property
    def world(self) -> int:
        return self.replicas * self.dp * self.tp * self.pp * self.cp

    @property
    def rows(self) -> int:
        """How many ways the rows of a batch are dealt."""
        return self.replicas * self.dp

    @property
    def stages(self) -> int:
        """Stages of the pipeline; an interleaved one has two on each rank."""
        return self.pp * (2 if self.schedule in ("interleaved-1f1b", "zero-bubble") else 1)

    def __str__(self) -> str:
        sizes = {name: getattr(self, name) for name in ("replicas", "dp", "tp", "pp", "cp", "ep")}
        return " x ".join(f"{name} {n}" for name, n in sizes.items() if n > 1) or "one process"


def check(
    layout: Layout, model: ModelConfig, *, batch_rows: int, context: int, micro_batches: int = 1
) -> None:
    """Raises RequestError where the layout does not divide the model or the batch, naming what would.

    batch_rows: of a micro-batch, over all processes.
    """
    problem = next(_problems(layout, model, batch_rows, context, micro_batches), "")
    if problem:
        raise RequestError(f"pretrain.layout ({layout}): {problem}")


def _problems(
    layout: Layout, model: ModelConfig, batch_rows: int, context: int, micro_batches: int
) -> Iterator[str]:
    def divides(parts: int, whole: int, name: str, what: str) -> Iterator[str]:
        if whole % parts:
            near = min(
                (n for n in range(1, whole + 1) if whole % n == 0),
                key=lambda n: (abs(n - parts), n),
            )
            yield f"{name} = {parts} does not divide {what} ({whole}); {name} = {near} does"

    dealt = "the rows of a micro-batch, batch_tokens / context / micro_batches"
    yield from divides(layout.rows, batch_rows, "replicas x dp", dealt)
    if layout.tp > 1:
        yield from divides(layout.tp, model.num_kv_heads, "tp", "the key-value heads")
        yield from divides(layout.tp, model.intermediate_size, "tp", "intermediate_size")
        yield from divides(layout.tp, model.vocab_size, "tp", "the vocabulary")
        yield from divides(layout.tp * layout.cp, context, "tp x cp", "the context")
        refused = {
            "latent attention": model.latent,
            "experts (spread them with ep)": model.moe,
            "attention sinks": model.attention_sinks,
            "learned positions": model.positions == "learned",
            "norms of queries and keys over the whole projection": (
                model.qk_norm and model.qk_norm_over == "projection"
            ),
        }
        for what in (name for name, has in refused.items() if has):
            yield f"tp does not split {what}; use dp"
    if layout.cp > 1:
        yield from divides(2 * layout.cp, context, "2 x cp", "the context")
    if layout.ep > 1:
        if model.moe is None:
            yield "ep spreads experts, and the model has none"
        else:
            yield from divides(layout.ep, model.moe.num_experts, "ep", "the experts")
            yield from divides(layout.ep, layout.dp, "ep", "dp")
    if layout.stages > 1:
        if layout.stages > model.num_layers:
            per = layout.stages // layout.pp
            most = model.num_layers // per
            yield (
                f"a pipeline of {layout.stages} stages needs as many layers, not {model.num_layers}; pp = {most} does"
            )
        if model.tie_embeddings:
            yield "a pipeline cannot tie embeddings: set tie_embeddings = false"
        if layout.schedule == "1f1b" and micro_batches < layout.pp:
            yield f"1f1b needs at least pp = {layout.pp} micro_batches, not {micro_batches}"
        if layout.stages > layout.pp and micro_batches % layout.pp:
            yield f"{layout.schedule} needs a multiple of pp = {layout.pp} micro_batches, not {micro_batches}"


@dataclass(frozen=True)
class Mesh:
    """The processes of a layout. Every dimension is there, of size 1 where the layout has none."""

    layout: Layout
    dims: DeviceMesh  # pp, replicas, ep, rest of dp, cp, tp

    @property
    def device(self) -> torch.device:
        kind = self.dims.device_type
        return (
            torch.device(kind, torch.cuda.current_device())
            if kind == "cuda"
            else torch.device(kind)
        )

    def at(self, name: str) -> int:
        """This process's place along a dimension."""
        return self.dims.get_local_rank(name)

    def group(self, name: str) -> dist.ProcessGroup:
        return self.dims.get_group(name)

    @property
    def row(self) -> int:
        """Which of `layout.rows` this process is dealt."""
        inner = self.at("ep") * (self.layout.dp // self.layout.ep) + self.at("dp")
        return self.at("replicas") * self.layout.dp + inner

    @property
    def speaks(self) -> bool:
        """Whether this process's sums count: one of those that computed the same loss, at the pipeline's end."""
        return self.at("tp") == 0 and self.at("pp") == self.layout.pp - 1

    @property
    def first(self) -> bool:
        return dist.get_rank() == 0


def build(layout: Layout, device: str = "cpu") -> Mesh:
    """The mesh of a layout over the processes of the default group. Raises RequestError when their number differs."""
    world = dist.get_world_size()
    if world != layout.world:
        raise RequestError(
            f"the layout ({layout}) is of {layout.world} processes, and there are {world}"
        )
    sizes = (layout.pp, layout.replicas, layout.ep, layout.dp // layout.ep, layout.cp, layout.tp)
    dims = init_device_mesh(
        device, sizes, mesh_dim_names=("pp", "replicas", "ep", "dp", "cp", "tp")
    )
    dims["ep", "dp", "cp"]._flatten("fsdp")
    dims["dp", "cp"]._flatten("fsdp_experts")
    dims["replicas", "ep", "dp", "cp"]._flatten(
        "tokens"
    )  # processes with the same layers and other tokens
    return Mesh(layout, dims)
