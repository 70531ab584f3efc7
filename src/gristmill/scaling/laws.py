"""Scaling laws in closed form, with the constants that were published for them.

N parameters, D training tokens, C training FLOPs, U unique tokens, L loss in nats a token. Losses are those of each
paper's own tokenizer and data: shapes carry over, absolute losses do not. All functions take floats or arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gristmill.errors import RequestError

PF_DAY = 1e15 * 86_400  # FLOPs
_GOLDEN = (math.sqrt(5) - 1) / 2


def training_flops(params: Any, tokens: Any) -> Any:
    """C = 6ND: two for each parameter forward, four backward; without attention (Kaplan 2020)."""
    return 6.0 * params * tokens


@dataclass(frozen=True)
class Optimum:
    """The best use of so many training FLOPs. inference: FLOPs of the tokens that it will answer with."""

    params: float
    tokens: float
    loss: float
    flops: float
    inference: float = 0.0

    @property
    def tokens_per_param(self) -> float:
        return self.tokens / self.params


@dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, arXiv 2203.15556, approach 3)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: Any, tokens: Any) -> Any:
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    @property
    def exponent(self) -> float:
        """Of the optimal N in C; that of D is one minus it."""
        return self.beta / (self.alpha + self.beta)

    @property
    def balance(self) -> float:
        """G of N* = G·(C/6)^exponent."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return ratio ** (1 / (self.alpha + self.beta))

    def optimum(self, flops: float) -> Optimum:
        """Where 6ND = `flops` and the loss is least."""
        params = self.balance * (flops / 6) ** self.exponent
        tokens = flops / 6 / params
        return Optimum(params, tokens, float(self.loss(params, tokens)), flops)

    def tokens_for(self, params: float, loss: float) -> float:
        """Tokens that bring a model of `params` to `loss`; inf where none do."""
        left = loss - self.E - self.A / params**self.alpha
        return (self.B / left) ** (1 / self.beta) if left > 0 else math.inf

    def params_for(self, tokens: Any) -> Any:
        """The size for which `tokens` is optimal."""
        return (tokens * self.balance) ** (self.beta / self.alpha) * self.balance

    def for_inference(self, loss: float, inference_tokens: float) -> Optimum:
        """The cheapest model of that loss, training and 2N for each token it answers with (Sardana et al. 2024,
        arXiv 2401.00448).

        Raises RequestError for a loss that no size reaches.
        """
        if loss <= self.E:
            raise RequestError(
                f"no model reaches a loss of {loss:g}: the law's floor E is {self.E:.4g}"
            )

        def cost(log_params: float) -> float:
            params = math.exp(log_params)
            tokens = self.tokens_for(params, loss)
            return 6 * params * tokens + 2 * params * inference_tokens

        least = math.log(self.A / (loss - self.E)) / self.alpha  # with endless data
        params = math.exp(minimum(cost, least + 1e-9, least + 40))
        tokens = self.tokens_for(params, loss)
        return Optimum(params, tokens, loss, 6 * params * tokens, 2 * params * inference_tokens)


@dataclass(frozen=True)
class Repeated:
    """Chinchilla's law with repeated data and excess parameters worth less (Muennighoff et al. 2023, 2305.16264).

    reuse: R*_D, the repetitions after which 1 - 1/e of what repeating can give is got. excess: R*_N, of parameters.
    """

    base: Chinchilla
    reuse: float
    excess: float

    def effective_tokens(self, tokens: Any, unique: Any) -> Any:
        """What so many tokens are worth when only `unique` of them differ."""
        unique = np.minimum(unique, tokens)
        return unique * (1 - self.reuse * np.expm1((1 - tokens / unique) / self.reuse))

    def effective_params(self, params: Any, unique: Any) -> Any:
        enough = np.minimum(params, self.base.params_for(unique))
        return enough * (1 - self.excess * np.expm1((1 - params / enough) / self.excess))

    def loss(self, params: Any, tokens: Any, unique: Any) -> Any:
        unique = np.minimum(unique, tokens)
        return self.base.loss(
            self.effective_params(params, unique), self.effective_tokens(tokens, unique)
        )

    def optimum(self, flops: float, unique: float) -> Optimum:
        """Where 6ND = `flops` and the loss is least, with `unique` tokens to be had."""

        def loss(log_params: float) -> float:
            params = math.exp(log_params)
            return float(self.loss(params, flops / 6 / params, unique))

        # All data once is where the plain law ends; with less data than that, larger and longer.
        free = math.log(self.base.optimum(flops).params)
        params = math.exp(minimum(loss, free - 12, free + 12))
        return Optimum(params, flops / 6 / params, loss(math.log(params)), flops)


@dataclass(frozen=True)
class Kaplan:
    """L(N, D) = [(Nc/N)^(alpha_N/alpha_D) + Dc/D]^alpha_D (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5).

    N is without embeddings.
    """

    Nc: float
    Dc: float
    alpha_N: float
    alpha_D: float

    def loss(self, params: Any, tokens: Any) -> Any:
        of_size = (self.Nc / params) ** (self.alpha_N / self.alpha_D)
        return (of_size + self.Dc / tokens) ** self.alpha_D


@dataclass(frozen=True)
class PowerLaw:
    """y = (scale/x)^exponent: a straight line falling in logarithms."""

    scale: float
    exponent: float

    def at(self, x: Any) -> Any:
        return (self.scale / x) ** self.exponent


HOFFMANN = Chinchilla(1.69, 406.4, 410.7, 0.34, 0.28)  # as printed
HOFFMANN_TEX = Chinchilla(  # the same fit with its digits, from the paper's TeX source
    math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186), 0.33917084, 0.2849083
)
BESIROGLU = Chinchilla(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # the replication, 2404.10102
PUBLISHED = {"besiroglu": BESIROGLU, "hoffmann": HOFFMANN, "hoffmann-tex": HOFFMANN_TEX}

MUENNIGHOFF = Repeated(
    Chinchilla(math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596),
    reuse=15.387756,
    excess=5.309743,
)

KAPLAN_PARAMS = PowerLaw(8.8e13, 0.076)  # L(N), data without end
KAPLAN_TOKENS = PowerLaw(5.4e13, 0.095)  # L(D), early stopped
KAPLAN_COMPUTE = PowerLaw(3.1e8 * PF_DAY, 0.050)  # L(C_min), C in FLOPs here
KAPLAN = Kaplan(Nc=6.4e13, Dc=1.8e13, alpha_N=0.076, alpha_D=0.103)


def kaplan_critical_batch(loss: Any) -> Any:
    """Tokens of a batch beyond which larger ones stop paying (Kaplan 2020, eq. 5.3): 2e8/L^(1/0.21)."""
    return 2e8 / loss ** (1 / 0.21)


def minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley between `low` and `high` is least: golden section, to 1e-10 of the span."""
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = function(a), function(b)
    tolerance = 1e-10 * (high - low)
    while high - low > tolerance:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = function(b)
    return (low + high) / 2
