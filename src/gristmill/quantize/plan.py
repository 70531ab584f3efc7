"""Which type each tensor of a GGUF file gets, so that the file fits a size and loses least: mixed precision.

Tensors are taken in groups (of a layer: q and k, v, the output projection, gate and up, down; the embedding; the
head). For every group and type the sensitivity is measured: the KL divergence of the model's predictions, on some
windows of text, with that group alone rounded to that type. From the smallest types on, the group whose next type
saves most divergence a byte is upgraded, until the budget is used up. The sum of the sensitivities is only a guess
of what all rounding together costs, so the plan is measured as a whole, beside the uniform mixtures that fit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.files import read_object, write_json
from gristmill.formats.gguf import FILE_TYPES, GGMLType, dequantize, quantize, tensor_types
from gristmill.formats.gguf_models import gguf_rules, gguf_shapes
from gristmill.formats.rules import Rule
from gristmill.model import Transformer
from gristmill.stage import Progress, quiet

UNIFORM = tuple(name for name in FILE_TYPES if name not in ("F32", "F16", "BF16"))
_BY_256 = (GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0)
# Of rows that are no whole blocks of 256.
_BY_32 = (GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_0, GGMLType.Q5_1, GGMLType.Q8_0)
_GROUPS = (
    (re.compile(r"(blk\.\d+)\.attn_[qk]\.weight"), "attn_qk"),
    (re.compile(r"(blk\.\d+)\.ffn_(gate|up)(_exps)?\.weight"), "ffn_gate_up"),
)
ALIGNMENT = 32


@dataclass(frozen=True)
class Option:
    """A type for a group: its bytes, and the divergence (nats a token) of the model with that group alone so."""

    type: GGMLType
    bytes: int
    kl: float


@dataclass(frozen=True)
class Planned:
    """types: of every tensor. kl: measured, all together. bytes: of the tensors. name: "mixed", or that of the
    uniform mixture that was better. uniform: what the mixtures that fit would have cost, (name, bytes, kl)."""

    types: dict[str, GGMLType]
    kl: float
    bytes: int
    name: str
    uniform: tuple[tuple[str, int, float], ...]


def undominated(options: Sequence[Option]) -> list[Option]:
    """Those worth choosing, smallest first: on the lower convex hull of bytes and divergence, where each further
    byte saves less than the one before."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.bytes, o.kl)):
        if hull and option.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and _saved(hull[-2], hull[-1]) <= _saved(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def choose(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """An option for each group within `budget` bytes, chosen greedily by divergence saved a byte.

    Raises RequestError where the smallest of all do not fit.
    """
    hulls = {group: undominated(of) for group, of in options.items()}
    chosen = {group: hull[0] for group, hull in hulls.items()}
    left = budget - sum(option.bytes for option in chosen.values())
    if left < 0:
        raise RequestError(
            f"the smallest that the tensors can be is {(budget - left) / 1e6:,.1f} MB, more than the "
            f"{budget / 1e6:,.1f} MB that --target-size leaves for them"
        )
    steps = [
        (_saved(a, b), group, b) for group, hull in sorted(hulls.items()) for a, b in pairwise(hull)
    ]
    stuck: set[str] = set()  # their next step did not fit, so later ones must not be taken
    for _, group, option in sorted(steps, key=lambda step: -step[0]):
        extra = option.bytes - chosen[group].bytes
        if group in stuck or extra > left:
            stuck.add(group)
            continue
        chosen[group], left = option, left - extra
    return chosen


def _saved(a: Option, b: Option) -> float:
    """Divergence saved a byte by going from a to b."""
    return (a.kl - b.kl) / max(1, b.bytes - a.bytes)


class Sizes:
    """The groups of a network's tensors, and the bytes that they take as one type or another."""

    def __init__(self, network: Transformer) -> None:
        self.shapes, self.metadata = gguf_shapes(network)
        fixed = tensor_types("Q8_0", list(self.shapes.items()), self.metadata)
        self.fixed = {name: type for name, type in fixed.items() if type.block_size == 1}
        self.groups: dict[str, list[str]] = {}
        for name in self.shapes:
            if name not in self.fixed:
                self.groups.setdefault(_group(name), []).append(name)

    @property
    def fixed_bytes(self) -> int:
        """Of the tensors that are never rounded (norms, routers, rows of odd lengths)."""
        return sum(self.bytes({name: type}) for name, type in self.fixed.items())

    def types(self, group: str) -> tuple[GGMLType, ...]:
        """The types that a group can have: its tensors have rows of one length each."""
        whole = all(self.shapes[name][-1] % 256 == 0 for name in self.groups[group])
        return _BY_256 if whole else _BY_32

    def bytes(self, types: Mapping[str, GGMLType]) -> int:
        """Bytes of those tensors in a file."""
        total = 0
        for name, type in types.items():
            size = type.nbytes(torch.Size(self.shapes[name]).numel())
            total += size + -size % ALIGNMENT
        return total

    def with_all(self, pick: Callable[[Iterable[int]], int]) -> int:
        """Bytes of all tensors, each group as the type with the least (`pick` is min) or most bytes."""
        of = (
            pick(self.bytes(dict.fromkeys(names, type)) for type in self.types(group))
            for group, names in self.groups.items()
        )
        return self.fixed_bytes + sum(of)


class Sensitivity(Sizes):
    """Measures on one network what rounding some of its tensors costs; the network is put back after each."""

    def __init__(
        self,
        network: Transformer,
        windows: Tensor,
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        """windows: int64 [count, length]. columns: how much each input matters, by layer, as `save_gguf` takes it."""
        super().__init__(network)
        self.network, self.windows, self.columns = network, windows, columns or {}
        self.rules = {rule.disk[0]: rule for rule in gguf_rules(network.config, network)}
        self._known: dict[tuple[tuple[str, GGMLType], ...], float] = {}
        start = time.monotonic()
        self._reference = [self._log_probs(window) for window in windows]
        self._pass_seconds = time.monotonic() - start

    def kl(self, types: Mapping[str, GGMLType]) -> float:
        """Mean divergence with those tensors rounded so."""
        key = tuple(types.items())
        if key in self._known:
            return self._known[key]
        with self._rounded(types):
            total = count = 0.0
            for window, p in zip(self.windows, self._reference, strict=True):
                q = self._log_probs(window)
                total += float((p.exp() * (p - q)).sum().double())
                count += len(p)
        self._known[key] = max(0.0, total / count)
        return self._known[key]

    def measure(
        self,
        file: Path,
        progress: Progress = quiet,
        begun: Callable[[int, float], None] = lambda left, seconds: None,
    ) -> dict[str, list[Option]]:
        """The options of every group. What `file` (JSON) holds already is not measured again. begun: called after
        the first measurement, with how many there are to do and about how long all take."""
        known: dict[str, float] = read_object(file)
        asked = [(group, type) for group in self.groups for type in self.types(group)]
        found: dict[str, list[Option]] = {}
        left = [group for group, type in asked if f"{group} {type.name}" not in known]
        for done, (group, type) in enumerate(asked):
            progress(done, len(asked), "sensitivities")
            types, key = dict.fromkeys(self.groups[group], type), f"{group} {type.name}"
            if key not in known:
                start = time.monotonic()
                known[key] = self.kl(types)
                write_json(file, known)
                if left:
                    begun(len(left), self._expected(left, time.monotonic() - start))
                    left = []
            found.setdefault(group, []).append(Option(type, self.bytes(types), known[key]))
        progress(len(asked), len(asked), "sensitivities")
        return found

    def _expected(self, groups: Sequence[str], first: float) -> float:
        """Seconds for measuring those groups, of which the first took `first`: a pass each, and rounding by size."""

        def elements(group: str) -> int:
            return sum(torch.Size(self.shapes[name]).numel() for name in self.groups[group])

        rounding = max(0.0, first - self._pass_seconds) / elements(groups[0])
        return len(groups) * self._pass_seconds + rounding * sum(map(elements, groups))

    @torch.no_grad()
    def _log_probs(self, window: Tensor) -> Tensor:
        return self.network(window[None], dtype=torch.float32)[0].log_softmax(-1)

    @contextmanager
    def _rounded(self, types: Mapping[str, GGMLType]) -> Iterator[None]:
        """While it lasts the network has these tensors as a file of these types would give them."""
        parameters = dict(self.network.named_parameters())
        before: dict[str, Tensor] = {}
        try:
            for name, type in types.items():
                rule = self.rules[name]
                for ours, tensor in zip(
                    rule.ours, self._round(rule, type, parameters), strict=True
                ):
                    before[ours] = parameters[ours].data
                    parameters[ours].data = tensor
            yield
        finally:
            for ours, tensor in before.items():
                parameters[ours].data = tensor

    def _round(self, rule: Rule, type: GGMLType, parameters: Mapping[str, Tensor]) -> list[Tensor]:
        (tensor,) = rule.save([parameters[name].detach() for name in rule.ours])
        columns = self.columns.get(rule.ours[0].removesuffix(".weight"))
        weighed = {} if columns is None else {"importance": columns}
        stored = quantize(tensor.float().contiguous().numpy(), type, **weighed)
        return [t.contiguous() for t in rule.load([torch.from_numpy(dequantize(stored, type))])]


def plan(
    sensitivity: Sensitivity,
    options: Mapping[str, Sequence[Option]],
    budget: int,
    say: Callable[[str], None] = lambda line: None,
) -> Planned:
    """The best types that fit `budget` bytes of tensors: the greedy choice, unless a uniform mixture that fits is
    measured to lose no more, which is then taken instead, and said.

    Raises RequestError where nothing fits.
    """
    chosen = choose(options, budget - sensitivity.fixed_bytes)
    types = dict(sensitivity.fixed)
    for group, option in chosen.items():
        types |= dict.fromkeys(sensitivity.groups[group], option.type)
    uniform: list[tuple[str, int, float, dict[str, GGMLType]]] = []
    for name in UNIFORM:
        of = tensor_types(name, list(sensitivity.shapes.items()), sensitivity.metadata)
        size = sensitivity.bytes(of)
        if size <= budget:
            uniform.append((name, size, sensitivity.kl(_only_rounded(of)), of))
    mixed = Planned(
        types,
        sensitivity.kl(_only_rounded(types)),
        sensitivity.bytes(types),
        "mixed",
        tuple((name, size, kl) for name, size, kl, _ in uniform),
    )
    best = min(uniform, key=lambda found: found[2], default=None)
    if best is None or mixed.kl < best[2]:
        return mixed
    name, size, kl, of = best
    say(
        f"the mixture {name} loses no more ({kl:.2e} nats, the mixed plan {mixed.kl:.2e}) and fits: it is taken instead"
    )
    return Planned(of, kl, size, name, mixed.uniform)


def _only_rounded(types: Mapping[str, GGMLType]) -> dict[str, GGMLType]:
    return {name: type for name, type in types.items() if type.block_size > 1}


def _group(name: str) -> str:
    for pattern, group in _GROUPS:
        if found := pattern.fullmatch(name):
            return f"{found[1]}.{group}"
    return name.removesuffix(".weight")
