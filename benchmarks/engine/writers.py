"""Models that write given answers, at the full cost of their shape: target and draft for measuring speculation.

Random weights write nothing that a reader would, and speculation lives on what real answers repeat. So the network
is random, and its head alone is solved for: the ridge regression of the next token of every answer on the final
hidden state before it. 12 layers with 768 dimensions hold a few hundred tokens exactly, with margins far above
rounding. Nothing is stored but that head: every token is computed by every layer.

The draft is a small random network with a head of the same kind, which some positions are left out of: what it
drafts there is wrong, as a real draft is now and then.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from benchmarks.engine import models
from benchmarks.engine.texts import Task

if TYPE_CHECKING:
    from gristmill.formats import Model
    from gristmill.tokenizer import Tokenizer

VOCAB = 8192
_RIDGE, _SCALE = 1e-6, 20.0  # of the largest squared singular value; of the logits


def tokenizer() -> Tokenizer:
    from gristmill.tokenizer import train_bpe

    return train_bpe(models.python_sources(models.CORPUS_BYTES), VOCAB)


def writer(
    layers: int,
    hidden_size: int,
    tokens: Tokenizer,
    script: list[tuple[list[int], list[int]]],
    share: float = 1.0,
) -> Model:
    """Writes each answer after its prompt, of the draft's kind where `share` of the positions is below 1.

    Raises RuntimeError where it does not.
    """
    import torch

    from gristmill.formats import Model

    network = models.random_network(models.llama(hidden_size, layers, VOCAB), seed=0)
    draw = Random(hidden_size)
    states, wanted = [], []
    with torch.no_grad():
        for prompt, answer in script:
            hidden = network.hidden(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
            kept = [i for i in range(len(answer)) if share == 1.0 or draw.random() < share]
            states.append(hidden[kept])
            wanted += [answer[i] for i in kept]
        x_ND, y_N = torch.cat(states).double(), torch.tensor(wanted)
        used = y_N.unique()
        targets = (y_N[:, None] == used).double() * _SCALE
        gram = x_ND @ x_ND.T
        gram += _RIDGE * torch.linalg.matrix_norm(gram, 2) * torch.eye(len(gram))
        network.head.weight.zero_()
        network.head.weight[used] = (x_ND.T @ torch.linalg.solve(gram, targets)).T.float()
        right = (torch.cat(states) @ network.head.weight.T).argmax(1) == y_N
    if share == 1.0 and not bool(right.all()):
        raise RuntimeError(
            f"the target writes {int((~right).sum())} tokens that are not its script's"
        )
    return Model(network, tokens)


def encoded(tasks: list[Task], tokens: Tokenizer, most: int) -> list[tuple[list[int], list[int]]]:
    return [(tokens.encode(task.prompt), tokens.encode(task.answer)[:most]) for task in tasks]
