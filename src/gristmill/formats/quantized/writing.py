"""A network's tensors for a directory, quantized layers packed as one of the formats; its quantization_config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gristmill.errors import RequestError, nearest
from gristmill.formats.quantized import awq, compressed, gptq
from gristmill.formats.quantized.layers import held_by, quantized_layers
from gristmill.formats.quantized.rows import row_order
from gristmill.formats.quantized.scheme import Int8Rows, Plan, Scheme
from gristmill.formats.rules import Rule, complete
from gristmill.kernels import CodedMatrix, Codes
from gristmill.model import Linear, ModelConfig, Transformer, meta_network

_PLANS = {"compressed-tensors": compressed.plan, "gptq": gptq.plan, "awq": awq.plan}


Held = Codes | Int8Rows


@dataclass(frozen=True)
class _Layer:
    """A layer on disk, made of `parts` here; order: for each row on disk which of theirs it is (None: the same)."""

    name: str
    parts: tuple[str, ...]
    order: Tensor | None

    def held(self, of: Callable[[str], Held]) -> Held:
        """What to write, from what each part holds. Raises RequestError for parts that cannot lie in one layer."""
        found = [of(part) for part in self.parts]
        held = found[0] if len(found) == 1 else _joined(found)
        if held is None:
            raise RequestError(
                f"{', '.join(self.parts)} lie in one layer on disk and are not quantized alike"
            )
        return held if self.order is None else held.rows(self.order)


@torch.no_grad()
def written(
    network: Transformer, rules: Sequence[Rule], quantization: str
) -> tuple[Iterator[tuple[str, Tensor]], dict[str, Any] | None]:
    """The tensors to write, under their names on disk, and quantization_config (None where nothing is quantized).

    quantization: "compressed-tensors", "gptq" or "awq". Raises RequestError, before a tensor is made, for what the
    format cannot hold.
    """
    layers = quantized_layers(network)
    for name, layer in layers.items():
        if isinstance(layer, CodedMatrix) and layer.source == "blocks":
            raise RequestError(
                f"{name} holds GGUF's {layer.coding}, which these files cannot; save the model as a .gguf file, or "
                "load it in full precision (widen)"
            )
    outlines = {name: _outline(held_by(layer)) for name, layer in layers.items()}
    jobs, plan = planned(network.config, rules, outlines, quantization)
    return _tensors(network, jobs, plan.schemes if plan else {}), plan.config if plan else None


@torch.no_grad()
def planned(
    config: ModelConfig,
    rules: Sequence[Rule],
    outlines: Mapping[str, Held],
    quantization: str,
) -> tuple[list[Rule | _Layer], Plan | None]:
    """What is to be written, and how (None where nothing is quantized), for a network that need not be there yet.

    outlines: of each quantized layer, by its name here, what it will hold; codes and 8-bit weights may lie on "meta".
    Raises RequestError for what the format cannot hold.
    """
    if quantization not in _PLANS:
        raise RequestError(
            f"{quantization!r} is no format of quantized weights; formats are {', '.join(_PLANS)}."
            f"{nearest(quantization, _PLANS)}"
        )
    meta = meta_network(config)
    jobs: list[Rule | _Layer] = []
    # A tied head has no tensor here, and is a layer to others; GPT-NeoX's has two names among them.
    kept = {"lm_head", "embed_out"} if config.family == "gpt_neox" else {"lm_head"}
    for rule in complete(rules, meta):
        names = [name.removesuffix(".weight") for name in rule.ours]
        parts = tuple(name for name in names if name in outlines)
        if parts:
            jobs.append(_layer(rule, parts, meta, quantization))
        else:
            jobs.append(rule)
            if any(_is_linear(meta, name) for name in rule.ours):
                kept.update(name.removesuffix(".weight") for name in rule.disk)
    coded = {job.name: job.held(outlines.__getitem__) for job in jobs if isinstance(job, _Layer)}
    if not coded:
        return jobs, None
    plan = _PLANS[quantization](coded, kept)
    for name, outline in coded.items():
        try:
            plan.schemes[name].check(outline)
        except RequestError as error:
            raise RequestError(f"{name} cannot be saved as {quantization}: {error}") from error
    return jobs, plan


def _tensors(
    network: Transformer, jobs: Sequence[Rule | _Layer], schemes: Mapping[str, Scheme]
) -> Iterator[tuple[str, Tensor]]:
    state, layers = network.state_dict(), quantized_layers(network)
    for job in jobs:
        if isinstance(job, Rule):
            moved = job.save([state[name].detach() for name in job.ours])
            yield from zip(job.disk, moved, strict=True)
        else:
            held = job.held(lambda name: held_by(layers[name]))
            for part, tensor in schemes[job.name].pack(held).items():
                yield f"{job.name}.{part}", tensor


def _layer(rule: Rule, parts: tuple[str, ...], meta: Transformer, quantization: str) -> _Layer:
    shapes = [meta.get_parameter(name).shape for name in rule.ours]
    moved = row_order(rule, shapes)
    name, family = parts[0], meta.config.family
    if len(parts) != len(rule.ours) or moved is None:
        raise RequestError(
            f"{name} cannot be saved quantized alone: the family {family} stores it together with others"
        )
    if moved.transposed and quantization != "gptq":
        raise RequestError(
            f'{name} cannot be saved as {quantization}: of the family {family} only "gptq" is read by others'
        )
    return _Layer(rule.disk[0].removesuffix(".weight"), parts, moved.order)


def _joined(held: Sequence[Held]) -> Held | None:
    """One below the other; None where they differ in kind, grid or order of inputs."""
    if any(_kind(part) != _kind(held[0]) for part in held):
        return None
    by_row = ("weight", "scale") if isinstance(held[0], Int8Rows) else ("q", "scale", "zero")
    return replace(held[0], **{n: torch.cat([getattr(part, n) for part in held]) for n in by_row})


def _kind(held: Held) -> tuple[Any, ...]:
    if isinstance(held, Int8Rows):
        return (held.activation_bits,)
    order = None if held.order is None else held.order.tolist()
    return held.bits, held.group, held.scale.dtype, order


def _outline(held: Held) -> Held:
    """All but the codes themselves, of which the shape stays: the scales of a whole model are no burden."""
    if isinstance(held, Int8Rows):
        return replace(held, weight=held.weight.to("meta"))
    return replace(held, q=held.q.to("meta"))


def _is_linear(meta: Transformer, name: str) -> bool:
    """Whether a parameter is the matrix of a linear layer, or of several experts'."""
    owner, _, attribute = name.rpartition(".")
    module = meta.get_submodule(owner)
    stacked = getattr(module, attribute).ndim == 3
    return stacked or (isinstance(module, Linear) and attribute == "weight")
