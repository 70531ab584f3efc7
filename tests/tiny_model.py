"""Small models with real tokenizers: one of random weights, and one that knows three answers by heart."""

from __future__ import annotations

import heapq
from functools import cache
from pathlib import Path

import torch

from gristmill.data import Fact, grounded, passage
from gristmill.formats import Model
from gristmill.model import ModelConfig, Transformer, initialize
from gristmill.model.init import generator_for
from gristmill.tokenizer import train_bpe

PROMPTS = [
    "def nlargest(n, iterable, key=None):",
    "Heaps",
    "are arrays for which a[k] <= a[2*k+1]",
    "import sys\n\n\nclass Ünïcode:\n    '''naïve 🙂 text'''\n",
    "x",
    "The interesting property of a heap is that its smallest element is always the root, " * 3,
    "for i in range(10):\n    heappush(h, i)",
    "    return result",
]


def random_model(seed: int = 0, vocab_size: int = 512, max_seq_len: int = 192) -> Model:
    source = Path(heapq.__file__).read_text(encoding="utf-8")
    tokenizer = train_bpe(iter([source, "naïve 🙂 text"]), vocab_size)
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        max_seq_len=max_seq_len,
    )
    return Model(randomized(Transformer(config), seed), tokenizer)


def randomized(network: Transformer, seed: int, spread: float = 0.25) -> Transformer:
    """Every weight random, the residual writers too, so that each position matters."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator_for(seed, name))
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise * spread)
    return network


FACTS = [
    Fact(
        id=f"fact-{name}",
        doc_id="doc",
        name=name,
        kind="function",
        package="stdlib",
        group="stdlib",
        module=name.split(".")[0],
        signature=signature,
        summary=summary,
        doc=summary,
        example=example,
        returns="",
        source=source,
        line=line,
        split="train",
    )
    for name, signature, summary, example, source, line in [
        (
            "heapq.nlargest",
            "(n, iterable, key=None)",
            "Find the n largest elements in a dataset.",
            "nlargest(3, [1, 5, 2, 8])",
            "python3.11/heapq.py",
            523,
        ),
        (
            "textwrap.dedent",
            "(text)",
            "Remove any common leading whitespace from every line in text.",
            "dedent('  a')",
            "python3.11/textwrap.py",
            419,
        ),
        (
            "shlex.quote",
            "(s)",
            "Return a shell-escaped version of the string.",
            "quote('a b')",
            "python3.11/shlex.py",
            325,
        ),
    ]
]
QUESTIONS = [f"What does `{fact.name}` do?" for fact in FACTS]
LESSONS = [
    (question, f"`{fact.name}{fact.signature}`: {fact.summary}\n\n```python\n{fact.example}\n```")
    for question, fact in zip(QUESTIONS, FACTS, strict=True)
]


@cache
def taught_model(steps: int = 200) -> Model:
    """A small model that has learned LESSONS by heart, asked plainly and with the passage of the fact."""
    tokenizer = train_bpe(iter([text for lesson in LESSONS for text in lesson] * 3), 640)
    config = ModelConfig(
        vocab_size=640,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        max_seq_len=384,
    )
    rows, masks = [], []
    for (question, answer), fact in zip(LESSONS, FACTS, strict=True):
        for asked in (question, grounded(question, [passage(fact)])):
            messages = [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answer},
            ]
            ids, mask = tokenizer.chat_ids_with_mask(messages)
            rows.append(torch.tensor(ids))
            masks.append(torch.tensor(mask))
    return Model(learned(config, rows, masks, steps), tokenizer)


def learned(
    config: ModelConfig, rows: list[torch.Tensor], masks: list[torch.Tensor], steps: int
) -> Transformer:
    """A network that says by heart what `masks` mark of the token ids in `rows`."""
    network = initialize(Transformer(config), seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-3)
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    wanted = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)[:, 1:]
    for _ in range(steps):
        hidden = network.hidden(tokens[:, :-1])[wanted]
        logits = torch.nn.functional.linear(hidden, network.head.weight)
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][wanted])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            return network.eval()
    raise AssertionError(f"the lessons were not learned: loss {loss.item():.3f}")
