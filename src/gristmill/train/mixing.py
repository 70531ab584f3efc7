"""Weights of a mixture learned from small runs: proxies trained on random mixtures, judged on what one wants.

Each run is a line of a file, so that a search that was killed goes on where it was.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gristmill.data.regmix import Proposal, measure, propose, sample_mixtures
from gristmill.errors import RequestError, nearest
from gristmill.files import hash_json, read_json, read_jsonl, write_jsonl
from gristmill.formats import Model
from gristmill.stage import Progress, quiet
from gristmill.train.next_token import NextToken, bytes_of_token
from gristmill.train.parallel.spread import Spread
from gristmill.train.pretrain import PretrainConfig, run
from gristmill.train.trainer import Judge
from gristmill.train.windows import Windows


@dataclass(frozen=True)
class Search:
    """target: the group whose held-out text is to be predicted well. runs: proxies. tokens: each learns from.

    The proxy is small on purpose: which mixture is better hardly depends on size (RegMix trains 1M parameters).
    """

    target: str
    runs: int = 24
    tokens: int = 400_000
    seed: int = 0
    layers: int = 2
    hidden: int = 64
    context: int = 128
    batch_tokens: int = 2048


def learn_mixture(
    tokens: Path, tokenizer: Path, out: Path, search: Search, progress: Progress = quiet
) -> Proposal:
    """The proposed weights of the groups of the token shards in `tokens`. What was measured is in `out`.

    Raises RequestError for an unknown target, one without held-out text, and fewer than two groups.
    """
    splits = read_json(tokens / "manifest.json")["splits"]
    sizes = {
        name: float(group["tokens"]) for name, group in splits["train"].items() if group["tokens"]
    }
    if search.target not in splits["heldout"]:
        raise RequestError(
            f'no held-out text of a group "{search.target}".{nearest(search.target, splits["heldout"])} '
            f"There is of: {', '.join(sorted(splits['heldout']))}"
        )
    heldout = Windows(tokens, "heldout", search.context, {search.target: 1.0}, search.seed)
    mixtures = sample_mixtures(sizes, search.runs, search.seed)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"proxies-{hash_json([asdict(search) | {'runs': 0}, splits])[:12]}.jsonl"
    done: list[dict[str, Any]] = read_jsonl(path) if path.is_file() else []
    known = {json.dumps(row["weights"]): row["loss"] for row in done}

    def proxy(weights: dict[str, float]) -> float:
        key = json.dumps(weights)
        if key not in known:
            known[key] = _loss(tokens, tokenizer, heldout, weights, search)
            done.append({"weights": weights, "loss": known[key]})
            write_jsonl(path, done)
        return known[key]

    losses = measure(mixtures, list(sizes), proxy, progress)
    return propose(mixtures, losses, list(sizes), search.seed)


def _loss(
    tokens: Path, tokenizer: Path, heldout: Windows, weights: dict[str, float], search: Search
) -> float:
    """Nats a token of the target's held-out text, after a small run on `weights`."""
    heads = max(1, search.hidden // 32)
    config = PretrainConfig(
        num_layers=search.layers,
        hidden_size=search.hidden,
        num_heads=heads,
        num_kv_heads=heads,
        intermediate_size=search.hidden * 8 // 3 // 8 * 8,
        warm_start="none",
        tokens=search.tokens,
        batch_tokens=search.batch_tokens,
        context=search.context,
        weights=weights,
        evaluations=0,
        seed=search.seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        made = run(config, {"tokens": tokens, "tokenizer": tokenizer}, Path(scratch))
        model = Model.load(made.outputs["model"])
    rows = max(16, 65_536 // search.context)
    objective = NextToken(heldout, heldout, bytes_of_token(model.tokenizer), 1, rows)
    spread = Spread([model.network], dtype=torch.float32)
    return objective.evaluate(Judge(spread, objective))["heldout_loss"]
