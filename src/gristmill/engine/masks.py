"""Which tokens the grammars of a step's requests allow, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gristmill.engine.grammar import Matcher


def token_masks(
    asked: Sequence[tuple[Matcher | None, Sequence[int], int]], vocab_size: int
) -> tuple[Tensor | None, dict[int, Exception]]:
    """int32 [rows, ⌈vocab_size / 32⌉], a set bit for an allowed token; None when nobody has a grammar.

    asked: (matcher, drafts, first): a row for what may follow each drafts[:i], i from `first` to all of them.
    The drafts must be allowed themselves. The matchers end as they were. With them, by index, what went wrong: a
    grammar may turn out too complex for its library, and must not fail the requests beside it.
    """
    failed: dict[int, Exception] = {}
    if all(matcher is None for matcher, _, _ in asked):
        return None, failed
    rows = sum(len(drafts) + 1 - first for _, drafts, first in asked)
    masks = torch.full((rows, -(-vocab_size // 32)), -1, dtype=torch.int32)
    at = 0
    for number, (matcher, drafts, first) in enumerate(asked):
        mine = masks[at : at + len(drafts) + 1 - first]
        at += len(mine)
        if matcher is None:
            continue
        try:
            for i in range(len(drafts) + 1):
                if i >= first:
                    matcher.mask(mine[i - first])
                if i < len(drafts):
                    matcher.consume(drafts[i])
            matcher.rollback(len(drafts))
        except Exception as error:
            failed[number] = error
    return masks, failed
