"""A network in numpy whose next token depends on every token before it, read through the block table."""

from __future__ import annotations

import numpy as np
import torch

from gristmill.engine.ragged import RaggedBatch

VOCAB = 17
HOLE = -1000  # in a slot that nobody wrote


class FakeRunner:
    """Its cache holds token ids, so a wrong slot, a hole or a leftover changes what comes next."""

    name, exact = "fake", True

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.slots = np.full(num_blocks * block_size, HOLE)
        self.computed = 0

    def hidden(self, batch: RaggedBatch) -> torch.Tensor:
        assert len(set(batch.slots_N.tolist())) == len(batch.slots_N), "a slot is mapped twice"
        self.slots[batch.slots_N] = batch.tokens_N
        self.computed += len(batch.tokens_N)
        owner = np.repeat(np.arange(len(batch.adapters)), np.diff(batch.starts))
        states = []
        for row in batch.wanted_W:
            positions = np.arange(batch.positions_N[row] + 1)
            table = batch.tables_RB[owner[row]]
            where = table[positions // self.block_size] * self.block_size
            states.append(mixed(self.slots[where + positions % self.block_size]))
        return torch.tensor(states, dtype=torch.float64)[:, None]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(scores(hidden.numpy()))

    def copy_block(self, source: int, target: int) -> None:
        size = self.block_size
        self.slots[target * size : (target + 1) * size] = self.slots[
            source * size : (source + 1) * size
        ]

    def refresh(self) -> None:
        pass


def scores(states_W1: np.ndarray) -> np.ndarray:
    """Logits [W, VOCAB], fp32."""
    return (np.sin(states_W1 * np.arange(1, VOCAB + 1) * 1.7) * 3).astype(np.float32)


def mixed(tokens: np.ndarray) -> float:
    """A number that any change, gap or exchange among the tokens changes."""
    weights = (np.arange(len(tokens)) * 2654435761 + 12345) % 1000003
    return float(((tokens + 7) * weights).sum() % 1000003) / 1000.0


def alone(prompt: list[int], count: int) -> list[int]:
    """What greedy decoding gives, by definition."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(scores(np.array([[mixed(np.array(tokens))]])).argmax()))
    return tokens[len(prompt) :]
