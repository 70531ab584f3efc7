"""A ladder of small trainings that fits a budget: at each of several budgets, several sizes (IsoFLOP profiles).

Every rung is the target's own shape made narrower or wider (depth, heads and MLP in its proportions), with its
tokenizer, data and rates, so that what the ladder shows is true of the target. N is what a token is multiplied with:
all active parameters but the embedding table, the head among them. C is 6ND of that N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gristmill.errors import RequestError
from gristmill.plan import counts, flops_per_token
from gristmill.train import PretrainConfig
from gristmill.train.pretrain import check, shape_of

COUNTED = "active parameters without the embedding table, with the head"
DECADES = (
    2.0  # from the smallest budget to the largest; without the largest, 1.3 of four budgets remain
)
_REACH = 4.0  # of a profile's sizes from its middle
_TOKENS_PER_PARAM = 20.0  # the middle's, before anything is known
_STEPS = 24  # fewer teach nothing but the warmup
_EPOCHS = 4.0  # repeats up to here are nearly as good as new data (Muennighoff et al. 2023)
_BATCH_GROWTH = 0.383  # batch ~ tokens^0.383 (arXiv 2505.13738), as in train/dial.py


@dataclass(frozen=True)
class Rung:
    """One training. exact: FLOPs with attention, causal; budget: the profile that it belongs to."""

    name: str
    config: PretrainConfig
    params: int
    total: int
    tokens: int
    budget: float
    exact: float
    lr_factor: float = 1.0

    @property
    def flops(self) -> float:
        return 6.0 * self.params * self.tokens


@dataclass(frozen=True)
class Ladder:
    rungs: tuple[Rung, ...]
    unique_tokens: int
    warnings: tuple[str, ...] = ()

    @property
    def flops(self) -> float:
        return sum(rung.flops for rung in self.rungs)


def plan_ladder(
    target: PretrainConfig,
    vocab_size: int,
    unique_tokens: int,
    flops: float,
    *,
    budgets: int = 4,
    sizes: int = 5,
    rates: Sequence[float] = (),
) -> Ladder:
    """Rungs that train for `flops` (6ND) in all, at most. rates: factors on the learning rates that the middle size of
    each budget is tried at too.

    Raises RequestError where the budget does not pay for that many rungs.
    """
    if target.base:
        raise RequestError(
            f"a ladder trains from nothing; pretrain.base is {target.base}: what a base model has learned before is "
            "not in N or D"
        )
    if flops <= 0 or budgets < 1 or sizes < 1:
        raise RequestError("a ladder takes FLOPs above zero, one budget and one size at least")
    extra = [rate for rate in rates if rate != 1.0]
    shares = [10 ** (-DECADES * i / max(1, budgets - 1)) for i in range(budgets)][::-1]
    # A run more for each rate; rounding goes down, so the sum never passes the budget.
    each = flops / ((sizes + len(extra)) * sum(shares))
    shapes = _shapes(target, vocab_size)
    rungs: list[Rung] = []
    problems: list[str] = []
    for share in shares:
        found = _profile(target, vocab_size, shapes, each * share, sizes, extra)
        rungs += found
        usual = sum(rung.lr_factor == 1.0 for rung in found)
        if usual < min(3, sizes):
            problems.append(
                f"{each * share:.2e} FLOPs pay for {usual} sizes of at least {_STEPS} steps"
            )
        elif usual < sizes:
            problems.append(f"{each * share:.2e} FLOPs: {usual} sizes instead of {sizes}")
    widest = shapes[min(sizes, len(shapes)) - 1][0]
    enough = float(_STEPS * target.context)
    while enough < _STEPS * _batch(target, enough):
        enough *= 1.05
    whole = 6.0 * widest * enough * flops / (each * shares[0])
    if not rungs:
        raise RequestError(
            f"{flops:.2e} FLOPs do not pay for a single training of {_STEPS} steps. Give more --flops: about "
            f"{whole:.1e} for all {budgets} x {sizes}; or fewer --budgets and --sizes"
        )
    if problems:
        problems.append(f"about {whole:.1e} FLOPs pay for all {budgets} x {sizes}")
    repeating = [rung for rung in rungs if rung.tokens > _EPOCHS * unique_tokens]
    if repeating:
        problems.append(
            f"{len(repeating)} rungs pass {_EPOCHS:g} epochs of the {unique_tokens:,} tokens there are: their loss is "
            "that of repeated data"
        )
    return Ladder(tuple(rungs), unique_tokens, tuple(problems))


def counted(config: PretrainConfig, vocab_size: int) -> int:
    """N as a ladder counts it, of any pretraining: what to give `predict` for the real run."""
    found = counts(shape_of(config, vocab_size))
    return found.active - (0 if config.tie_embeddings else found.embedding)


def _shapes(target: PretrainConfig, vocab_size: int) -> list[tuple[int, PretrainConfig]]:
    """(N, settings) of all widths, narrowest first. Widths beyond the target's are for targets that are tiny."""
    least = 64 if target.warm_start == "induction" else 32
    found = {}
    for width in range(least, 4 * max(target.hidden_size, least) + 1, 16):
        config = _narrowed(target, width)
        found.setdefault(counted(config, vocab_size), config)
    return sorted(found.items(), key=lambda item: item[0])


def _narrowed(target: PretrainConfig, width: int) -> PretrainConfig:
    share = width / target.hidden_size
    floor = 32 if target.warm_start == "induction" else 8
    head_dim = target.head_dim
    while head_dim > floor and width // head_dim < 2:
        head_dim //= 2
    heads = max(2, round(target.num_heads * target.head_dim * share / head_dim))
    wanted = heads * target.num_kv_heads / target.num_heads
    groups = [n for n in range(1, heads + 1) if heads % n == 0]
    settings: dict[str, Any] = {
        "hidden_size": width,
        "num_layers": max(2, round(target.num_layers * share)),
        "head_dim": head_dim,
        "num_heads": heads,
        "num_kv_heads": min(groups, key=lambda n: abs(math.log(n / wanted))),
        "intermediate_size": max(8, 8 * round(target.intermediate_size * share / 8)),
        "expert_size": max(8, 8 * round(target.expert_size * share / 8)),
    }
    return target.model_copy(update=settings)


def _profile(
    target: PretrainConfig,
    vocab_size: int,
    shapes: list[tuple[int, PretrainConfig]],
    budget: float,
    sizes: int,
    rates: Sequence[float],
) -> list[Rung]:
    """The rungs of one budget: sizes about its middle, those at other rates last."""
    able = [
        (params, config)
        for params, config in shapes
        if budget / (6 * params) >= _STEPS * _batch(target, budget / (6 * params))
    ]
    middle = math.sqrt(budget / (6 * _TOKENS_PER_PARAM))
    # Where the narrowest shapes are larger than that, the profile moves up and gives up its small side.
    middle = max(middle, able[0][0] if able else middle)
    chosen: dict[int, PretrainConfig] = {}
    for i in range(sizes):
        wanted = middle * _REACH ** (2 * i / max(1, sizes - 1) - 1) if sizes > 1 else middle
        free = [item for item in able if item[0] not in chosen]
        if free:
            params, config = min(free, key=lambda item: abs(math.log(item[0] / wanted)))
            chosen[params] = config
    rungs = [
        _rung(target, config, vocab_size, params, budget, 1.0)
        for params, config in sorted(chosen.items())
    ]
    if rungs:
        centre = rungs[len(rungs) // 2]
        shape = chosen[centre.params]
        rungs += [_rung(target, shape, vocab_size, centre.params, budget, rate) for rate in rates]
    return rungs


def _rung(
    target: PretrainConfig,
    shape: PretrainConfig,
    vocab_size: int,
    params: int,
    budget: float,
    rate: float,
) -> Rung:
    tokens = budget / (6 * params)
    batch = _batch(target, tokens)
    steps = int(tokens // batch)
    settings: dict[str, Any] = {
        "tokens": steps * batch,
        "batch_tokens": batch,
        # A warmup as long as the target's would be most of a short run (Porian et al. 2024, 2406.19146).
        "warmup_steps": min(target.warmup_steps, max(1, steps // 10)),
        "lr_peak": target.lr_peak * rate,
        "lr_embedding_peak": target.lr_embedding_peak * rate,
        "micro_batches": 1,
        "evaluations": 1,
        "measure_noise": False,
        "samples": (),
        "log_to": (),
        "layout": type(target.layout)(),
    }
    config = shape.model_copy(update=settings)
    check(config)
    network = shape_of(config, vocab_size)
    exact = flops_per_token(network, config.context, causal=True).training * config.tokens
    name = f"c{budget:.1e}-n{params}".replace("+", "")
    name += f"-r{rate:g}" if rate != 1.0 else ""
    return Rung(name, config, params, counts(network).total, config.tokens, budget, exact, rate)


def _batch(target: PretrainConfig, tokens: float) -> int:
    """Tokens of a step: whole rows of the target's context, fewer for a shorter run."""
    wanted = target.batch_tokens * min(1.0, tokens / target.tokens) ** _BATCH_GROWTH
    return target.context * max(1, round(wanted / target.context))
