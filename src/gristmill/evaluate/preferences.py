"""How often a model finds the right answer of a preference pair more likely than the wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gristmill.evaluate.conversation import split_answer
from gristmill.evaluate.likelihood import Likelihood, likelihoods
from gristmill.evaluate.scores import mean_and_stderr
from gristmill.files import read_jsonl
from gristmill.lm import Message
from gristmill.model import Transformer
from gristmill.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pair:
    """One line of preferences.heldout.jsonl. `seen`: the fact was asked about in training."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    seen: bool


def read_pairs(path: Path, limit: int | None = None) -> list[Pair]:
    """Pairs of a preference file, the first `limit` seen and the first `limit` held-out ones."""
    pairs: list[Pair] = []
    counts = {True: 0, False: 0}
    for row in read_jsonl(path):
        pair = Pair(
            tuple(row["prompt"]),
            row["chosen"][0]["content"],
            row["rejected"][0]["content"],
            row["seen"],
        )
        counts[pair.seen] += 1
        if limit is None or counts[pair.seen] <= limit:
            pairs.append(pair)
    return pairs


def score_pairs(
    network: Transformer,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    dtype: torch.dtype = torch.float32,
) -> list[tuple[Likelihood, Likelihood] | None]:
    """Log-likelihoods of (chosen, rejected); None for a pair that does not fit the model's context."""
    contexts, options, fits = [], [], []
    for pair in pairs:
        context, chosen = split_answer(tokenizer, pair.prompt, pair.chosen)
        rejected = split_answer(tokenizer, pair.prompt, pair.rejected)[1]
        longest = len(context) + max(len(chosen), len(rejected))
        fits.append(longest <= network.config.max_seq_len)
        if fits[-1]:
            contexts.append(context)
            options.append([chosen, rejected])
    scored = iter(likelihoods(network, contexts, options, dtype))
    return [tuple(next(scored)) if fit else None for fit in fits]  # type: ignore[misc]


def accuracies(
    pairs: Sequence[Pair],
    scores: Sequence[tuple[Likelihood, Likelihood] | None],
    reference: Sequence[tuple[Likelihood, Likelihood] | None] | None = None,
) -> dict[str, Any]:
    """Share of pairs whose right answer wins, for seen and held-out facts apart; a tie is half a win.

    "seen" and "heldout" compare Σ logp, with `…_stderr` and `…_n`; `…_per_token` compares the mean. With the
    scores of a `reference` model, `…_reward` compares Σ logp - Σ logp of the reference: DPO's implicit
    reward (Rafailov et al. 2023), what TRL logs as rewards/accuracies.
    """
    result: dict[str, Any] = {}
    for name, seen in (("seen", True), ("heldout", False)):
        rows = [
            (score, None if reference is None else reference[number])
            for number, (pair, score) in enumerate(zip(pairs, scores, strict=True))
            if pair.seen == seen and score is not None
        ]
        if not rows:
            continue
        wins = [_win(chosen.logprob, rejected.logprob) for (chosen, rejected), _ in rows]
        accuracy, stderr = mean_and_stderr(wins)
        result[name] = accuracy
        if len(rows) > 1:
            result[f"{name}_stderr"] = stderr
        result[f"{name}_n"] = len(rows)
        per_token = [_win(chosen.mean, rejected.mean) for (chosen, rejected), _ in rows]
        result[f"{name}_per_token"] = sum(per_token) / len(rows)
        compared = [(score, before) for score, before in rows if before is not None]
        if compared:
            rewards = [
                _win(new[0].logprob - old[0].logprob, new[1].logprob - old[1].logprob)
                for new, old in compared
            ]
            result[f"{name}_reward"] = sum(rewards) / len(rewards)
    return result


def _win(right: float, wrong: float) -> float:
    return 1.0 if right > wrong else 0.5 if right == wrong else 0.0
