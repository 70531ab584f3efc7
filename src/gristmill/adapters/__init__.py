"""LoRA and DoRA put on a network from outside: several at once, merged and taken off, in PEFT's directories."""

from gristmill.adapters.config import LoraConfig
from gristmill.adapters.load import load_adapter
from gristmill.adapters.lora import Lora
from gristmill.adapters.merge import merge, merge_and_unload, unmerge
from gristmill.adapters.resident import (
    activate,
    adapters_by_row,
    adapters_of,
    add_lora,
    train_only,
    trainable_parameters,
    unload_adapter,
)
from gristmill.adapters.save import save_adapter

__all__ = [
    "Lora",
    "LoraConfig",
    "activate",
    "adapters_by_row",
    "adapters_of",
    "add_lora",
    "load_adapter",
    "merge",
    "merge_and_unload",
    "save_adapter",
    "train_only",
    "trainable_parameters",
    "unload_adapter",
    "unmerge",
]
