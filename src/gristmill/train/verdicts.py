"""What a diagnosis says: cause, sentence, place and cure, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from gristmill.train.examine import Examined
from gristmill.train.pretrain import PretrainConfig
from gristmill.train.suspects import Suspect

Cause = Literal[
    "none",  # there is nothing to explain
    "vocabulary",  # an id that the embedding does not have
    "checkpoint",  # its file holds weights that the training did not make
    "learning rate",
    "data",
    "precision",  # finite in fp32
    "gradients",  # finite going forward, not coming back
    "not reproduced",
    "unknown",
]
Verdict = dict[str, Any]  # cause, sentence, cure, and place or suspects: fields of a Diagnosis


def vocabulary(suspect: Suspect, size: int) -> Verdict:
    return {
        "cause": "vocabulary",
        "sentence": f"{suspect.where} holds the token {suspect.highest}, and the vocabulary has {size}: the shard was "
        "encoded with another tokenizer.",
        "cure": "Run the tokens stage again with this tokenizer (--from tokens).",
        "suspects": (suspect,),
    }


def data(suspects: tuple[Suspect, ...], place: str) -> Verdict:
    worst = suspects[0]
    told = ""
    if worst.document:
        told = f" `gristmill data why RUN {worst.document}` tells the document's story."
    return {
        "cause": "data",
        "place": place,
        "suspects": suspects,
        "sentence": f"The batch is at fault, not the weights: {worst.where} {worst.why}.",
        "cure": 'Take it out of the corpus, or pass over such steps with pretrain.on_spike = "skip".'
        + told,
    }


def rate(config: PretrainConfig, moved: Mapping[str, float], place: str, why: str) -> Verdict:
    """moved: the setting of a rate -> the largest share of its norm by which an update moved what it is the rate of."""
    by_share = {name: v if math.isfinite(v) else math.inf for name, v in moved.items()}
    setting = max(by_share, key=lambda name: by_share[name], default="lr_peak")
    by = f", and an update moved them by {moved[setting]:.2g} of their norm" if moved else ""
    return {
        "cause": "learning rate",
        "place": place,
        "sentence": f"The learning rate is too high: the weights are at fault, not the batch ({why}{by}). "
        f"It shows first in {worded(place)}.",
        "cure": f"Lower pretrain.{setting} (now {getattr(config, setting):g}) three times or more, or raise "
        f"pretrain.warmup_steps (now {config.warmup_steps}).",
    }


def precision(place: str, dtype: torch.dtype, exact: float | None) -> Verdict:
    """exact: the size of what passes the place in fp32."""
    name = str(dtype).removeprefix("torch.")
    size = f" (up to {exact:.3g} in float32)" if exact else ""
    return {
        "cause": "precision",
        "place": place,
        "sentence": f"{name} is not enough: the step is finite in float32. It shows first in {worded(place)}{size}.",
        "cure": 'Set pretrain.compute_dtype = "float32", or keep activations small: qk_norm, z_loss = 1e-4, a lower '
        "rate.",
    }


def gradients(place: str, found: Examined) -> Verdict:
    hit = ", ".join(found.bad_gradients[:4])
    return {
        "cause": "gradients",
        "place": place,
        "sentence": f"The loss is finite ({found.loss:.4g}) and its gradient is not: it overflows on its way back, "
        f"first at {worded(place)}; parameters hit: {hit or 'none alone, their norm'}.",
        "cure": "Lower the rate, or set pretrain.z_loss = 1e-4 so that logits stay small.",
    }


def not_reproduced(step: int, bad_checkpoints: Sequence[tuple[int, str]]) -> Verdict:
    """bad_checkpoints: (step, a parameter) of those that hold what is not finite."""
    if bad_checkpoints:
        at, name = bad_checkpoints[0]
        return {
            "cause": "checkpoint",
            "place": name,
            "sentence": f"The checkpoint of step {at} holds {name} with values that are not finite, and the same steps "
            "made again give finite ones: its file was changed, or memory failed while it was made.",
            "cure": f"Remove checkpoints/step-{at:08d} and go on from the one before it.",
        }
    return {
        "cause": "not reproduced",
        "sentence": f"Made again on one process, step {step} is fine: neither data nor settings are at fault. The "
        "layout, a device or memory may be.",
        "cure": "Prove the layout with `gristmill doctor parallel RECIPE`, then go on from the checkpoint.",
    }


def bad_checkpoint(bad_checkpoints: Sequence[tuple[int, str]]) -> Verdict:
    """Where the steps before it were not made again."""
    at, name = bad_checkpoints[0]
    return {
        "cause": "checkpoint",
        "place": name,
        "sentence": f"The checkpoint of step {at} holds {name} with values that are not finite. Whether training made "
        "them or the file was changed, only the steps before it would tell.",
        "cure": "Give `gristmill doctor run` a larger --patience, or begin the training again.",
    }


def unread() -> Verdict:
    return {
        "cause": "unknown",
        "sentence": "The tokens of the batch look like text; to tell more, the way to the step must be made again.",
        "cure": "A larger --patience does that.",
    }


def unknown(place: str) -> Verdict:
    return {
        "cause": "unknown",
        "place": place,
        "sentence": f"No row, weight or rate stands out. It shows most in {worded(place)}.",
        "cure": 'Pass over such steps with pretrain.on_spike = "skip", or go around them with "rollback".',
    }


def rise(losses: Sequence[float]) -> str:
    """How the loss rose over the last steps, "" where it did not."""
    lowest = min(losses, default=math.inf)
    if len(losses) < 4 or not losses[-1] > 1.1 * lowest:
        return ""
    ago = len(losses) - losses.index(lowest) - 1
    return f"the loss rose from {lowest:.4g} to {losses[-1]:.4g} over the {ago} steps before"


def worded(place: str) -> str:
    """A place of a Flow, or a parameter."""
    name, _, side = place.rpartition(" ")
    if not place:
        return "the logits or the loss"
    if side == "output":
        return f"what {name} gives"
    if side == "input":
        made = "attention itself" if name.endswith("o_proj") else "a sum or product between modules"
        return f"what {name} is given ({made})"
    return place
