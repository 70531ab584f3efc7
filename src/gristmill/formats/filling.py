"""Tensors from disk into the network, one rule at a time: checked, converted, nothing left to chance."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gristmill.errors import RequestError
from gristmill.formats.rules import Rule, complete
from gristmill.formats.source import Source
from gristmill.model import Transformer

# What older writers store beside the weights, and is computed from the configuration.
_COMPUTED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias")
_COMPUTED += (".attention.masked_bias", ".attention.rotary_emb.inv_freq")


@torch.no_grad()
def fill(
    network: Transformer,
    source: Source,
    rules: Sequence[Rule],
    dtype: torch.dtype | None,
    device: torch.device,
    unused: str = "(?!)",
) -> None:
    """Give every parameter of a `meta` network its value; `dtype` None: the one that it has on disk.

    Each tensor is read, checked, converted and let go before the next, so memory stays near the size of the
    finished network; where dtype and device are the file's own, parameters are views of the mapped file.
    Tensors whose names match `unused` are left alone. Raises RequestError, naming file and tensor, for one that
    is missing, left over, of another shape or kind, or not finite.
    """
    rules = complete(rules, network)
    wanted = network.state_dict()
    needless = re.compile(unused)
    held = {name for name in source.names() if not name.endswith(_COMPUTED)}
    held = {name for name in held if not needless.fullmatch(name)}
    _check_tied(network, source, held, rules)
    needed = [name for rule in rules for name in rule.disk]
    for name in needed:
        if name not in held:
            raise RequestError(
                f"{source.place(name)}: the tensor {name} is missing from the weights"
            )
    extra = sorted(held - set(needed))
    if extra:
        raise RequestError(
            f"{source.place(extra[0])}: the architecture has no place for the tensor {extra[0]}"
        )
    for rule in rules:
        # The way back says what must be on disk: shapes of tensors that exist on no device.
        expected = rule.save([wanted[name] for name in rule.ours])
        for name, tensor in zip(rule.ours, _moved(source, rule, expected, dtype), strict=True):
            _put(network, name, tensor.to(device))
        for name in rule.disk:
            source.release(name)  # nothing but the network refers to its tensors any more


def _moved(
    source: Source, rule: Rule, expected: list[Tensor], dtype: torch.dtype | None
) -> list[Tensor]:
    """The parameters that a rule makes of the source's tensors."""
    loaded = [checked(source, name, like) for name, like in zip(rule.disk, expected, strict=True)]
    made = zip(rule.ours, rule.load(loaded), strict=True)
    return [_converted(name, tensor, dtype).contiguous() for name, tensor in made]


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite.

    The extremes are both, wherever there is one; finding them takes one pass at the speed of memory, thirty
    times that of `isfinite().all()`.
    """
    if tensor.dtype.itemsize == 1:  # float8, of which torch knows no extremes
        tensor = tensor.float()
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def _check_tied(
    network: Transformer, source: Source, held: set[str], rules: Sequence[Rule]
) -> None:
    """A head that is stored although it is tied to the embedding must be equal to it; then it is not needed."""
    if not network.config.tie_embeddings:
        return
    tied = (rule.disk[0] for rule in rules if rule.ours == ("model.embed_tokens.weight",))
    embedding = next(tied, "")
    for head in ("lm_head.weight", "embed_out.weight"):
        if head not in held:
            continue
        if embedding not in held or not torch.equal(source.load(embedding), source.load(head)):
            raise RequestError(
                f"{source.place(head)}: the embeddings are tied, yet {head} differs from "
                f"{embedding}; set tie_word_embeddings to false in config.json to use both"
            )
        held.discard(head)


def checked(source: Source, name: str, like: Tensor) -> Tensor:
    """A tensor of the shape of `like`, of its dtype or (floats) its kind, and equal to it where it has memory.

    Raises RequestError, naming file and tensor, also for one that is not finite.
    """
    tensor = source.load(name)
    if tensor.shape != like.shape:
        raise RequestError(
            f"{source.place(name)}: the tensor {name} has shape {list(tensor.shape)}, and the "
            f"configuration asks for {list(like.shape)}"
        )
    if tensor.dtype != like.dtype and not (tensor.is_floating_point() and like.is_floating_point()):
        raise RequestError(
            f"{source.place(name)}: the tensor {name} holds {dtype_name(tensor.dtype)}, expected was "
            f"{dtype_name(like.dtype)}"
        )
    if tensor.is_floating_point() and not is_finite(tensor):
        raise RequestError(f"{source.place(name)}: the tensor {name} holds NaN or infinity")
    if not like.is_meta and not torch.equal(tensor, like):
        raise RequestError(
            f"{source.place(name)}: the tensor {name} says {tensor.tolist()}, and the configuration "
            f"{like.tolist()}"
        )
    return tensor


def _converted(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    # Rounding a scale would change every weight of its row, and a correction which experts are chosen.
    exact = name.endswith((".weight_scale", ".correction"))
    return tensor.float() if exact else tensor.to(dtype)


def _put(network: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    module = network.get_submodule(owner)
    old = getattr(module, attribute)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(module, attribute, tensor)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
