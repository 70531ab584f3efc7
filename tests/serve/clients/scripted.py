"""A model that writes what it is told: the user's message names a script, which it recites token by token."""

from __future__ import annotations

import random
import re

import numpy as np
import torch

from gristmill.engine import Engine
from gristmill.engine.ragged import RaggedBatch
from gristmill.tokenizer import Tokenizer
from tests.serve.openai.thinker import thinking_model


class Scripted:
    """scripts: token ids by number, as in the message "script 7"; each ends with the end of the turn."""

    def __init__(self) -> None:
        model = thinking_model()
        self.tokenizer = model.tokenizer
        self.engine = Engine(model, runner="torch", prefix_caching=False)
        self.scripts: list[list[int]] = []
        self._start = self.tokenizer.special("<|im_start|>")
        self._opening = len(self.tokenizer.encode("assistant\n")) + 1
        self._block = self.engine.block_size
        self._slots = np.zeros(self.engine.cache_tokens + 4 * self._block, dtype=np.int64)
        runner = self.engine.runner
        runner.hidden, runner.logits = self._hidden, self._logits  # type: ignore[method-assign]

    def add(self, text: str, draw: random.Random) -> int:
        """The number of a script of `text`, cut into tokens at random."""
        self.scripts.append(split(self.tokenizer, text, draw))
        return len(self.scripts) - 1

    def _hidden(self, batch: RaggedBatch) -> torch.Tensor:
        """What comes next, [W, 1]. The cache is of ids here."""
        self._slots[batch.slots_N] = batch.tokens_N
        owner = np.repeat(np.arange(len(batch.adapters)), np.diff(batch.starts))
        following = []
        for row in batch.wanted_W:
            positions = np.arange(int(batch.positions_N[row]) + 1)
            table = batch.tables_RB[owner[row]]
            where = table[positions // self._block] * self._block + positions % self._block
            following.append(self._next(self._slots[where].tolist()))
        return torch.tensor(following, dtype=torch.float32)[:, None]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        ids = hidden[:, 0].long()
        return 100 * torch.nn.functional.one_hot(ids, self.tokenizer.vocab_size).float()

    def _next(self, ids: list[int]) -> int:
        turn = len(ids) - 1 - ids[::-1].index(self._start)
        named = re.findall(r"script (\d+)", self.tokenizer.decode(ids[:turn]))
        script = self.scripts[int(named[-1])] if named else []
        said = len(ids) - turn - self._opening
        end = self.tokenizer.special("<|im_end|>")
        return script[said] if 0 <= said < len(script) else end


def split(tokenizer: Tokenizer, text: str, draw: random.Random) -> list[int]:
    """Ids of tokens that join to `text`, of the many ways to cut it a random one; with characters cut through."""
    spelled = {
        tokenizer.token_bytes(id): id
        for id in range(tokenizer.vocab_size)
        if not tokenizer.is_special(id)
    }
    rest, ids = text.encode(), []
    while rest:
        fitting = [n for n in range(1, min(len(rest), 24) + 1) if rest[:n] in spelled]
        n = draw.choice(fitting)
        ids.append(spelled[rest[:n]])
        rest = rest[n:]
    return ids
