"""From an assistant that answers to one that prefers the better answer."""

from gristmill.align.dpo import DPOConfig
from gristmill.align.losses import dpo_loss

__all__ = ["DPOConfig", "dpo_loss"]
