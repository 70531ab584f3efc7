"""What each method does to one decoder block (`layerwise.Method`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gristmill.kernels.codes import Codes
from gristmill.model import Block, Linear
from gristmill.model.layers import MLP, PlusOneRMSNorm
from gristmill.quantize.awq import (
    ScalePair,
    fewer_rows,
    fold,
    scale_pairs,
    search_clip,
    search_scales,
)
from gristmill.quantize.gptq import Hessian, gptq, proxy_loss
from gristmill.quantize.grid import round_to_nearest
from gristmill.quantize.int8 import quantize_rows
from gristmill.quantize.layerwise import Done, linear, stages
from gristmill.quantize.smooth import smooth_scales
from gristmill.quantize.stream import Stream

JUDGED_TOKENS = 2048  # of AWQ's, whose outputs judge scales and clips; twenty scales are tried
_NEVER_CLIPPED = ("self_attn.q_proj", "self_attn.k_proj")  # their products are sensitive


@dataclass(frozen=True)
class Grid:
    """bits: of a code. group: inputs that share a scale; None: one a row. symmetric: the zero is in the middle."""

    bits: int
    group: int | None
    symmetric: bool

    @property
    def settings(self) -> dict[str, Any]:
        return {"bits": self.bits, "group": self.group, "symmetric": self.symmetric}


@dataclass(frozen=True)
class RoundToNearest:
    """Each weight to the nearest point of its group's grid; looks at no text."""

    grid: Grid

    def __call__(self, block: Block, name: str, stream: Stream | None) -> Done:
        done = Done()
        for layer in (layer for stage in stages(block) for layer in stage):
            weight = linear(block, layer).weight
            codes = round_to_nearest(weight, name=f"{name}.{layer}", **self.grid.settings)
            take(block, layer, codes, done)
        return done


@dataclass(frozen=True)
class GPTQ:
    """The errors of a column made up for by the later ones, on the inputs that the text brings (gptq.py)."""

    grid: Grid
    damping: float = 0.01
    mse: bool = False

    def __call__(self, block: Block, name: str, stream: Stream | None) -> Done:
        assert stream is not None
        done = Done()
        for stage in stages(block):
            hessian = Hessian(linear(block, stage[0]).in_features)
            stream.feed(block, {stage[0]: hessian.add})
            for layer in stage:
                weight, place = linear(block, layer).weight, f"{name}.{layer}"
                found = gptq(
                    weight,
                    hessian,
                    damping=self.damping,
                    mse=self.mse,
                    name=place,
                    **self.grid.settings,
                )
                nearest = round_to_nearest(weight, name=place, **self.grid.settings)
                done.notes[layer] = {
                    "proxy_loss": found.proxy,
                    "proxy_loss_of_nearest": proxy_loss(weight, nearest, hessian),
                    "damping": found.damping,
                    "tokens": hessian.tokens,
                }
                take(block, layer, found.codes, done)
        return done


@dataclass(frozen=True)
class AWQ:
    """Inputs that matter scaled up before rounding, then ranges clipped (awq.py). dtype: that the norms are stored
    in, to which a folded scale is rounded before anything is quantized against it."""

    grid: Grid
    dtype: torch.dtype

    def __call__(self, block: Block, name: str, stream: Stream | None) -> Done:
        assert stream is not None
        done = Done()
        parts = stages(block)
        # Folding changes nothing that the block computes (but a norm's bias, rounded to `dtype`), so one pass sees
        # what all of its layers are given.
        seen = {part[0]: _Seen(linear(block, part[0]).in_features, stream) for part in parts}
        stream.feed(block, {layer: one.add for layer, one in seen.items()})
        for pair in scale_pairs(block):
            self._scale(block, name, pair, seen[pair.names[0]], stream, done)
        for part in parts:
            rows = seen[part[0]].rows
            for layer in part:
                weight, place = linear(block, layer).weight, f"{name}.{layer}"
                shrink = None
                if layer not in _NEVER_CLIPPED:
                    shrink = search_clip(weight, rows, name=place, **self.grid.settings)
                codes = round_to_nearest(weight, shrink=shrink, name=place, **self.grid.settings)
                take(block, layer, codes, done)
        return done

    def _scale(
        self, block: Block, name: str, pair: ScalePair, seen: _Seen, stream: Stream, done: Done
    ) -> None:
        """Search and fold the scale of one pair, and divide by it what was seen."""
        weights = [consumer.weight for consumer in pair.consumers]
        if pair.judge is pair.consumers[0]:
            x = fewer_rows(seen.rows)

            def forward(replaced: Any) -> Tensor:
                return x @ replaced[0].T
        else:
            # Attention looks along whole windows; an MLP sees each token alone, so its can be from all of them.
            alone = isinstance(pair.judge, MLP)
            inputs = [(seen.rows,)] if alone else stream.inputs(block, pair.judge, JUDGED_TOKENS)

            def forward(replaced: Any) -> Tensor:
                for consumer, weight in zip(pair.consumers, replaced, strict=True):
                    consumer.weight = frozen(weight)
                return torch.cat([pair.judge(*given) for given in inputs])

        try:
            found = search_scales(
                seen.mean, weights, forward, name=f"{name}.{pair.names[0]}", **self.grid.settings
            )
        finally:
            for consumer, weight in zip(pair.consumers, weights, strict=True):
                consumer.weight = weight
        done.notes[pair.names[0]] = {
            "ratio": found.ratio,
            "loss": found.loss,
            "loss_of_nearest": found.plain_loss,
        }
        if found.ratio is not None:
            seen.rows /= fold_into(block, pair, found.scale, self.dtype, done)


@dataclass(frozen=True)
class SmoothQuant:
    """Outliers of activations moved into the weights, then 8 bits: one scale an output, activations token by token.

    Only norms take the inverse scales, as published. dtype: as of AWQ."""

    dtype: torch.dtype

    def __call__(self, block: Block, name: str, stream: Stream | None) -> Done:
        assert stream is not None
        done = Done()
        for pair in scale_pairs(block):
            if isinstance(pair.producer, Linear):
                continue
            largest = _Largest(pair.consumers[0].in_features)
            stream.feed(block, {pair.names[0]: largest.add})
            scale = smooth_scales(largest.value, [c.weight for c in pair.consumers])
            fold_into(block, pair, scale, self.dtype, done)
        for layer in (layer for stage in stages(block) for layer in stage):
            q, scale = quantize_rows(linear(block, layer).weight)
            q = (q.to(torch.int16) + 128).to(torch.uint8)
            zero = torch.full_like(scale, 128, dtype=torch.uint8)
            take(block, layer, Codes(q, scale, zero, 8, q.shape[1]), done)
        return done


class _Seen:
    """Mean of |x| for each input, over all tokens, and the inputs of JUDGED_TOKENS, evenly from all windows."""

    def __init__(self, width: int, stream: Stream) -> None:
        self._sum, self._tokens = torch.zeros(width, dtype=torch.float64), 0
        self._every = max(1, stream.tokens // JUDGED_TOKENS)
        self._parts: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        self._sum += x.abs().sum(0, dtype=torch.float64)
        self._parts.append(x[-self._tokens % self._every :: self._every].clone())
        self._tokens += len(x)

    @property
    def mean(self) -> Tensor:
        return (self._sum / self._tokens).float()

    @cached_property
    def rows(self) -> Tensor:
        return torch.cat(self._parts)


class _Largest:
    """Largest |x| for each input."""

    def __init__(self, width: int) -> None:
        self.value = torch.zeros(width)

    def add(self, x: Tensor) -> None:
        self.value = torch.maximum(self.value, x.abs().amax(0))


def fold_into(
    block: Block, pair: ScalePair, scale: Tensor, dtype: torch.dtype, done: Done
) -> Tensor:
    """Fold a scale, and note what of the producer is not quantized: a norm, and biases, rounded as they are stored.

    The scale [in] that was folded, which differs from the one asked for by that rounding."""
    scale = _as_stored(pair.producer, scale, dtype)
    fold(pair, scale)
    place = next(name for name, module in block.named_modules() if module is pair.producer)
    for attribute, parameter in pair.producer.named_parameters(recurse=False):
        if parameter.ndim == 1:
            stored = parameter.to(dtype)
            done.changed[f"{place}.{attribute}"] = stored
            setattr(pair.producer, attribute, frozen(stored.float()))
    return scale


def _as_stored(producer: nn.Module, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale [in] that is left of `scale` once a norm is rounded to `dtype`: its consumers must undo that one.

    bf16 rounds by up to 0.4%. A projection is not stored in `dtype` but quantized, so its scale stays.
    """
    weight = producer.weight
    assert isinstance(weight, Tensor)
    if weight.ndim != 1:
        return scale
    plus = 1.0 if isinstance(producer, PlusOneRMSNorm) else 0.0
    stored = plus + ((plus + weight) / scale - plus).to(dtype).float()
    left = (plus + weight) / stored
    return torch.where(left.isfinite() & (left > 0), left, scale)


def take(block: Block, name: str, codes: Codes, done: Done) -> None:
    """Give a layer its codes, and the weights that they stand for."""
    done.codes[name] = codes
    linear(block, name).weight = frozen(codes.matrix())


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
