"""The objective of pretraining: cross-entropy of the next token, in nats a token and bits a byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gristmill.model import Transformer
from gristmill.tokenizer import Tokenizer
from gristmill.train.balance import balance_by_row, router_logits
from gristmill.train.loss import linear_cross_entropy
from gristmill.train.parallel.spread import Rows, Sums
from gristmill.train.windows import Windows

_JUDGED_AT_ONCE = 16  # rows


class NextToken:
    """document_start: the id that every document begins with, where documents must not see each other.

    balance_loss: weight of the unevenness of the experts' loads in a row, 1 where they are even (balance.py). ring:
    the processes that share the tokens of a row.
    """

    counts = "tokens"

    def __init__(
        self,
        windows: Windows,
        heldout: Windows | None,
        bytes_of_token: Tensor,
        batch_rows: int,
        evaluation_rows: int,
        *,
        heldout_groups: Mapping[str, Windows] | None = None,
        document_start: int | None = None,
        z_loss: float = 0.0,
        balance_loss: float = 0.0,
        ring: dist.ProcessGroup | None = None,
    ) -> None:
        self.windows, self.heldout = windows, heldout
        self.heldout_groups = heldout_groups or {}
        self.bytes_of_token = bytes_of_token
        self.batch_rows, self.evaluation_rows = batch_rows, evaluation_rows
        self.document_start = document_start
        # Parts of the loss in training, not of what is held out.
        self.z_loss, self.balance_loss = z_loss, balance_loss
        self.ring = ring

    def batch(self, step: int, row: int = 0, rows: int = 1) -> Rows:
        return self._rows(self.windows.rows(step * self.batch_rows, self.batch_rows, row, rows))

    def _rows(self, windows: np.ndarray) -> Rows:
        """Of windows [rows, tokens + 1]."""
        ids = torch.from_numpy(windows)
        tokens, targets = ids[:, :-1], ids[:, 1:]
        places = torch.arange(tokens.shape[1]).expand_as(tokens)
        if self.document_start is None:
            return Rows(tokens, targets, places, None)
        begins = tokens == self.document_start
        start = torch.where(begins, places, 0).cummax(1).values
        # The next document's beginning is a target too: it is how a document's end is said.
        return Rows(tokens, targets, places - start, begins.cumsum(1))

    def loss(
        self, network: Transformer, batch: Rows, dtype: torch.dtype
    ) -> tuple[Tensor, int, dict[str, float]]:
        balanced = self.balance_loss > 0 and torch.is_grad_enabled() and network.config.moe
        with router_logits(network) if balanced else nullcontext([]) as logits_LNE:
            hidden = network.hidden(
                batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments, dtype=dtype
            )
        loss, plain = self._losses(network, hidden, batch.targets)
        targets, more = self.count(batch.targets)
        if balanced:
            rows, tokens = batch.targets.shape
            top = balanced.experts_per_token
            uneven = balance_by_row(logits_LNE, rows, top, self.ring) / top
            loss = (
                loss + self.balance_loss * tokens * (self.ring.size() if self.ring else 1) * uneven
            )
        return loss, targets, {"plain": plain.item(), **more}

    def judge(self, network: Transformer, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """The summed loss of the network's last activations, z-loss included."""
        return self._losses(network, hidden_BTD, targets_BT)[0]

    def _losses(
        self, network: Transformer, hidden_BTD: Tensor, targets_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """With z-loss and without."""
        weight = network.head.weight
        group = None
        if isinstance(weight, DTensor):  # the vocabulary is split
            group, weight = weight.device_mesh.get_group(), weight.to_local()
        return linear_cross_entropy(
            hidden_BTD.flatten(0, 1),
            weight,
            targets_BT.flatten(),
            bias=getattr(network.head, "bias", None),
            softcap=network.config.logit_softcap,
            z_loss=self.z_loss if torch.is_grad_enabled() else 0.0,
            group=group,
        )

    def count(self, targets_BT: Tensor) -> tuple[int, dict[str, float]]:
        """(targets, further sums)."""
        wanted = targets_BT[targets_BT >= 0]
        return len(wanted), {"bytes": self.bytes_of_token[wanted.cpu()].sum().item()}

    def describe(self, sums: dict[str, float], targets: int) -> dict[str, float]:
        loss = sums.get("plain", sums["loss"])  # a pipeline tells one sum alone
        return {
            "loss": loss / targets,
            "bits_per_byte": loss / math.log(2) / max(1.0, sums["bytes"]),
        }

    def evaluate(self, judge: Callable[[Rows], Sums]) -> dict[str, float]:
        """The same rows every time: the first of the held-out stream. Of each group too, where there are several."""
        if self.heldout is None:
            return {}
        made = self._judged(judge, self.heldout, self.evaluation_rows)
        row = {f"heldout_{name}": value for name, value in made.items()}
        # As many rows again in all, so that the price does not grow with the number of groups.
        each = max(1, self.evaluation_rows // max(1, len(self.heldout_groups)))
        for group, windows in self.heldout_groups.items():
            found = self._judged(judge, windows, each)["bits_per_byte"]
            row[f"heldout_bits_per_byte/{group}"] = found
        return row

    def _judged(
        self, judge: Callable[[Rows], Sums], windows: Windows, count: int
    ) -> dict[str, float]:
        sums = {"loss": 0.0, "bytes": 0.0}
        targets = 0
        pieces = max(1, count // _JUDGED_AT_ONCE)
        for part in np.array_split(windows.rows(0, count), pieces):
            found = judge(self._rows(part))
            sums["loss"] += found.loss
            sums["bytes"] += found.more["bytes"]
            targets += found.targets
        return self.describe(sums, max(1, targets))


def bytes_of_token(tokenizer: Tokenizer) -> Tensor:
    """UTF-8 bytes that each token stands for, float32 [V]; special tokens stand for none."""
    return torch.tensor(
        [
            0.0 if tokenizer.is_special(i) else float(len(tokenizer.token_bytes(i)))
            for i in range(tokenizer.vocab_size)
        ]
    )
