"""The trainer and what it trains for: next tokens and answers. Alignment objectives live in `align`."""

from gristmill.train.compute import fast_dtype, resolve_dtype
from gristmill.train.next_token import NextToken
from gristmill.train.optim import Muon, OptimConfig, Optimizer
from gristmill.train.order import epoch_order
from gristmill.train.pretrain import PretrainConfig
from gristmill.train.sft import SFTConfig, pad
from gristmill.train.trainer import Judge, Objective, train

__all__ = [
    "Judge",
    "Muon",
    "NextToken",
    "Objective",
    "OptimConfig",
    "Optimizer",
    "PretrainConfig",
    "SFTConfig",
    "epoch_order",
    "fast_dtype",
    "pad",
    "resolve_dtype",
    "train",
]
