"""Families that store several layers as one, or rows in another order: the same moves for codes as for weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gristmill.formats.rules import Rule


@dataclass(frozen=True)
class Moved:
    """order: for each row on disk which of our rows it is, counted through `Rule.ours`; None: the same.

    transposed: the plain tensor lies as [in, out] on disk (GPT-2's Conv1D); quantized it lies as all others.
    """

    order: Tensor | None
    transposed: bool


def row_order(rule: Rule, shapes: Sequence[torch.Size]) -> Moved | None:
    """How a rule moves the rows of our weights, [out, in] each; None for one that does more than that."""
    if len(rule.disk) != 1 or any(len(shape) != 2 for shape in shapes):
        return None
    # Two columns stand for all: what moves rows treats columns alike.
    heights = [shape[0] for shape in shapes]
    numbers = torch.arange(2 * sum(heights)).view(-1, 2)
    (disk,) = rule.save(list(numbers.split(heights)))
    for transposed in (False, True):
        rows = disk.T if transposed else disk
        if rows.shape == numbers.shape and torch.equal(rows, rows[:, :1] + numbers[0]):
            order = rows[:, 0] // 2
            same = torch.equal(order, torch.arange(len(order)))
            return Moved(None if same else order, transposed)
    return None
