"""What an adapter is: its rank and scale, and which layers it is on, chosen by PEFT's patterns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gristmill.errors import RequestError, nearest

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraConfig:
    """W' = W + scale · B A, with scale = alpha / rank, or alpha / √rank where `rslora`.

    `dora` learns the length of every row of W' apart from its direction. `dropout` is on the input of A, while
    training. The defaults are PEFT's.

    `target_modules` is a list of module names or their last parts ("q_proj", "mlp.up_proj"), a regular
    expression for whole names, or "all-linear": every linear layer but the head. `exclude_modules` takes away
    from it in the same two ways. `rank_pattern` and `alpha_pattern` give some modules their own rank and alpha:
    the first key that is, as a regular expression, the end of the module's name. `layers_to_transform` are
    numbers of decoder blocks; it goes with "all-linear" or a list, whose whole names it does not restrict.

    Hu et al. 2021 (arXiv 2106.09685); rslora: Kalajdzievski 2023 (2312.03732); dora: Liu et al. 2024
    (2402.09353). Raises RequestError for a value that makes no sense.
    """

    rank: int = 8
    alpha: float = 8
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    target_modules: Sequence[str] | str = ALL_LINEAR
    exclude_modules: Sequence[str] | str = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: Sequence[int] | Literal["all"] = "all"

    def __post_init__(self) -> None:
        for where, rank in [("rank", self.rank), *_entries("rank_pattern", self.rank_pattern)]:
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise RequestError(f"LoRA: {where} must be a whole number from 1, not {rank!r}")
        for where, alpha in [("alpha", self.alpha), *_entries("alpha_pattern", self.alpha_pattern)]:
            if not _is_number(alpha) or not 0 < alpha < math.inf:
                raise RequestError(f"LoRA: {where} must be a number above 0, not {alpha!r}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise RequestError(f"LoRA: dropout must be from 0 to below 1, not {self.dropout!r}")
        if not self.target_modules:
            raise RequestError("LoRA: target_modules names no module")
        patterns = [*self.rank_pattern, *self.alpha_pattern]
        patterns += [p for p in (self.target_modules, self.exclude_modules) if isinstance(p, str)]
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise RequestError(
                    f"LoRA: {pattern!r} is not a regular expression: {error}"
                ) from None
        if self.layers_to_transform != "all" and self._is_regex:
            raise RequestError(
                "LoRA: layers_to_transform does not go with a regular expression as target_modules; "
                "give a list of names, or put the layers into the expression"
            )

    @property
    def _is_regex(self) -> bool:
        return isinstance(self.target_modules, str) and self.target_modules != ALL_LINEAR

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_key_for(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        alpha = self.alpha_pattern.get(_key_for(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether this module is meant, if it is a linear layer."""
        if self.exclude_modules and named_by(self.exclude_modules, module):
            return False
        if self.target_modules != ALL_LINEAR and not named_by(self.target_modules, module):
            return False
        if self.layers_to_transform == "all" or module in self.target_modules:
            return True  # as PEFT: a whole name also says the layer
        # the first number in the name, as PEFT: a later one may be an expert's
        layer = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        return layer is not None and int(layer[1]) in self.layers_to_transform

    def check_names(self, linears: Iterable[str], others: Iterable[str]) -> None:
        """Raise RequestError where a pattern means no linear layer, or one of the `others`.

        PEFT lets a list hold names that the model lacks; for who writes one by hand it is a misspelling.
        """
        linears = list(linears)
        entries = {"target_modules": self.target_modules, "exclude_modules": self.exclude_modules}
        for key, value in entries.items():
            for entry in [value] if isinstance(value, str) else value:
                pattern = entry if isinstance(value, str) else (entry,)
                if entry != ALL_LINEAR and not any(named_by(pattern, name) for name in linears):
                    raise RequestError(
                        f"LoRA: {key} {entry!r} is no linear layer of this model."
                        f"{nearest(entry, _last_parts(linears))}"
                    )
        for key in [*self.rank_pattern, *self.alpha_pattern]:
            if not any(_key_for((key,), name) for name in linears):
                raise RequestError(
                    f"LoRA: the pattern {key!r} is no linear layer of this model."
                    f"{nearest(key, _last_parts(linears))}"
                )
        for name in others:
            if self._is_regex and self.targets(name):
                raise RequestError(
                    f"LoRA: target_modules {self.target_modules!r} also means {name}, which is no "
                    "linear layer that can be adapted"
                )


def named_by(patterns: Sequence[str] | str, module: str) -> bool:
    """PEFT's rule: a string is a regular expression for the whole name; a list holds names or their ends."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in patterns)


def _key_for(patterns: Iterable[str], module: str) -> str:
    matching = (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))
    return next(matching, "")


def _last_parts(modules: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in modules}


def _entries(field_name: str, pattern: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(f"{field_name}[{key!r}]", value) for key, value in pattern.items()]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
