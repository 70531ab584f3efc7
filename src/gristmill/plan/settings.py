"""How a model is trained, as the planner is told: precision, optimizer, rows, and a layout of devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from gristmill.errors import RequestError, nearest
from gristmill.plan.kept import Kernels

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Precision:
    """Bytes of a parameter's weight, of its copy in the compute type, gradient and master copy; of an activation."""

    weights: int
    copies: int
    gradients: int
    master: int
    activations: int
    computes: str  # the device's speed that counts


PRECISIONS = {
    "float32": Precision(4, 0, 4, 0, 4, "float32"),
    "bfloat16": Precision(4, 2, 4, 0, 2, "bfloat16"),  # ours: fp32 weights are the master copy
    "fp8": Precision(4, 1, 4, 0, 2, "fp8"),
    "mixed": Precision(2, 0, 2, 4, 2, "bfloat16"),  # Megatron's and DeepSpeed's
    "pure-bfloat16": Precision(2, 0, 2, 0, 2, "bfloat16"),  # no master copy
}
# Bytes of the moments: of a parameter of a hidden matrix, and of any other.
OPTIMIZERS = {"adamw": (8, 8), "muon": (4, 8), "adamw-8bit": (2, 2)}


class Layout(Protocol):
    """Sizes of a layout's dimensions, as `gristmill.train.parallel.layout.Layout` has them."""

    @property
    def dp(self) -> int: ...
    @property
    def replicas(self) -> int: ...
    @property
    def tp(self) -> int: ...
    @property
    def pp(self) -> int: ...
    @property
    def cp(self) -> int: ...
    @property
    def ep(self) -> int: ...


@dataclass(frozen=True)
class Sizes:
    """A layout by its sizes alone."""

    dp: int = 1
    replicas: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1

    @property
    def world(self) -> int:
        return self.dp * self.replicas * self.tp * self.pp * self.cp

    def __str__(self) -> str:
        names = ("replicas", "dp", "tp", "pp", "cp", "ep")
        said = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name) > 1]
        return " x ".join(said) or "one device"


@dataclass(frozen=True)
class Training:
    """context: tokens of a row. micro_batches: pieces of a step whose gradients are summed; with one, gradients take
    the place of activations. zero: what FSDP or ZeRO shards (3: all; 2: not the weights; 1: the optimizer's state
    alone). apart: documents in a row do not see each other. extra: see `counts.layer_counts`."""

    precision: str = "bfloat16"
    micro_batch_rows: int = 1
    context: int = 4096
    optimizer: str = "adamw"
    recompute: Recompute = "none"
    micro_batches: int = 2
    zero: int = 3
    schedule: str = "1f1b"
    kernels: Kernels = "cuda"
    loss: Literal["chunked", "whole"] = "chunked"
    apart: bool = False
    ema: bool = False
    extra: int = 0

    def __post_init__(self) -> None:
        known = {
            "precision": PRECISIONS,
            "optimizer": OPTIMIZERS,
            "recompute": ("none", "selective", "full"),
        }
        for name, options in known.items():
            value = getattr(self, name)
            if value not in options:
                raise RequestError(
                    f'{name} must be {", ".join(options)}, not "{value}".{nearest(str(value), options)}'
                )
        for name in ("micro_batch_rows", "context", "micro_batches"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, not {getattr(self, name)}")
