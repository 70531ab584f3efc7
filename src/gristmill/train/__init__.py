"""The trainer and what it trains for: next tokens and answers. Alignment objectives live in `align`."""

from gristmill.train.compute import fast_dtype, resolve_dtype
from gristmill.train.optim import Muon, OptimConfig, build_optimizers
from gristmill.train.order import epoch_order
from gristmill.train.pretrain import PretrainConfig
from gristmill.train.sft import SFTConfig, pad
from gristmill.train.trainer import Objective, train

__all__ = [
    "Muon",
    "Objective",
    "OptimConfig",
    "PretrainConfig",
    "SFTConfig",
    "build_optimizers",
    "epoch_order",
    "fast_dtype",
    "pad",
    "resolve_dtype",
    "train",
]
