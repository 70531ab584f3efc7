"""Which tokens the grammars of a step's requests allow, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gristmill.engine.grammar import Matcher


def token_masks(
    asked: Sequence[tuple[Matcher | None, Sequence[int], int]], vocab_size: int
) -> Tensor | None:
    """int32 [rows, ⌈vocab_size / 32⌉], a set bit for an allowed token; None when nobody has a grammar.

    asked: (matcher, drafts, first): a row for what may follow each drafts[:i], i from `first` to all of them.
    The drafts must be allowed themselves. The matchers end as they were.
    """
    if all(matcher is None for matcher, _, _ in asked):
        return None
    rows = sum(len(drafts) + 1 - first for _, drafts, first in asked)
    masks = torch.full((rows, -(-vocab_size // 32)), -1, dtype=torch.int32)
    at = 0
    for matcher, drafts, first in asked:
        if matcher is None:
            at += len(drafts) + 1 - first
            continue
        for i in range(len(drafts) + 1):
            if i >= first:
                matcher.mask(masks[at])
                at += 1
            if i < len(drafts):
                matcher.consume(drafts[i])
        matcher.rollback(len(drafts))
    return masks
