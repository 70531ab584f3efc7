"""The adapters on a network: put on and taken off, one active or one chosen for every row of the batch.

Each adapted layer gets a child `lora` with that layer's part of every adapter, and a forward hook. The layer
stays what it was, under its own name, so nothing else in the network or on disk needs to know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from gristmill.adapters.config import LoraConfig
from gristmill.adapters.lora import AnyLinear, Lora
from gristmill.errors import RequestError, nearest
from gristmill.model import generator_for

# Linear layers whose weight is used as a matrix: a hook on them would not be called.
_USED_AS_MATRIX = ("lm_head", "router")


@dataclass
class Residents:
    """What the layers of one network share."""

    configs: dict[str, LoraConfig] = field(default_factory=dict)
    active: str | None = None
    rows: dict[str, Tensor] | None = None  # adapter -> LongTensor of the rows that use it
    num_rows: int = 0
    merged: str | None = None
    unfrozen: list[nn.Parameter] = field(default_factory=list)  # of the network, before adapters


class Adapters(nn.ModuleDict):
    """One layer's part of each adapter, by the adapter's name. `hook` is the layer's forward hook."""

    unmerged: Tensor | None

    def __init__(self, residents: Residents) -> None:
        super().__init__()
        self.residents = residents
        self.register_buffer("unmerged", None, persistent=False)  # the weight before a merge

    def hook(self, linear: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        residents, (x,) = self.residents, args
        if residents.merged is not None:
            return None
        if residents.rows is None:
            chosen = residents.active
            return self[chosen](linear, x, y) if chosen is not None and chosen in self else None
        if x.ndim != 3 or x.shape[0] != residents.num_rows:
            raise RequestError(
                f"adapters were chosen for {residents.num_rows} rows, and a layer got "
                f"{list(x.shape)} instead of [rows, tokens, features]"
            )
        for name, rows in residents.rows.items():
            if name in self and len(rows) == len(x):
                return self[name](linear, x, y)
            if name in self:
                y = y.index_copy(0, rows, self[name](linear, x[rows], y[rows]))
        return y


def add_lora(network: nn.Module, config: LoraConfig, name: str = "default", seed: int = 0) -> None:
    """Put a fresh adapter on the network, active, and the only thing that trains.

    A is drawn uniform in ±1/√in (PEFT's: Kaiming with a = √5) as a function of (seed, module), B is zero, so the
    outputs are unchanged. DoRA's magnitudes are the row lengths of the weights. Layers may be `Linear` or
    `Int8Linear`. Raises RequestError when a pattern means no linear layer, or the name is taken.
    """
    linears = linears_of(network)
    others = [n for n, _ in network.named_modules() if n and not _inside(n) and n not in linears]
    config.check_names(linears, others)
    targets = {module: linear for module, linear in linears.items() if config.targets(module)}
    if not targets:
        raise RequestError("LoRA: target_modules, less what is excluded, is no layer of this model")
    loras = {module: _fresh(linear, module, config, seed) for module, linear in targets.items()}
    attach(network, name, config, loras)
    train_only(network, name)


def _fresh(linear: AnyLinear, module: str, config: LoraConfig, seed: int) -> Lora:
    A = torch.empty(config.rank_of(module), linear.in_features)
    generator = generator_for(seed, f"{module}.lora_A.weight")
    nn.init.kaiming_uniform_(A, a=5**0.5, generator=generator)
    B = torch.zeros(linear.out_features, config.rank_of(module))
    magnitude = linear.matrix(torch.float32).detach().norm(dim=1) if config.dora else None
    return Lora(A, B, config.scale_of(module), config.dropout, magnitude).to(device_of(linear))


def device_of(linear: nn.Module) -> torch.device:
    """Where a layer lies; a quantized one has no weight, but buffers."""
    return next(chain(linear.parameters(), linear.buffers())).device


def attach(network: nn.Module, name: str, config: LoraConfig, loras: Mapping[str, Lora]) -> None:
    """Make an adapter of these parts resident and active, the base frozen. Raises RequestError for its name."""
    residents = residents_of(network)
    if residents.merged is not None:
        raise RequestError(
            f"adapter {residents.merged!r} is merged: unmerge it before adding another"
        )
    if not re.fullmatch(r"[\w-]+", name) or hasattr(Adapters(residents), name):
        raise RequestError(
            f"an adapter cannot be named {name!r}; use other letters, digits, - and _"
        )
    if name in residents.configs:
        raise RequestError(
            f"there is an adapter {name!r} already; unload it, or choose another name"
        )
    if not residents.configs:
        residents.unfrozen = [p for p in network.parameters() if p.requires_grad]
        network.requires_grad_(False)
    for module, lora in loras.items():
        linear = network.get_submodule(module)
        if not hasattr(linear, "lora"):
            linear.add_module("lora", Adapters(residents))
            linear.register_forward_hook(linear.lora.hook)  # type: ignore[union-attr, arg-type]
        adapters = linear.lora
        assert isinstance(adapters, Adapters)
        adapters[name] = lora.requires_grad_(False)
        adapters.train(linear.training)
    residents.configs[name], residents.active = config, name


def unload_adapter(network: nn.Module, name: str) -> None:
    """Take an adapter off. The last one leaves the network as it was, with what trained before unfrozen."""
    residents = having(network, name)
    if residents.merged is not None:
        raise RequestError(f"adapter {residents.merged!r} is merged: unmerge it before unloading")
    for linear, adapters in adapted_layers(network).values():
        if name in adapters:
            del adapters[name]
        if not len(adapters):
            remove_from(linear)
    del residents.configs[name]
    residents.active = None if residents.active == name else residents.active
    if not residents.configs:
        unfreeze(residents)


def remove_from(linear: nn.Module) -> None:
    """Take the child `lora` and its hook off a layer."""
    hooks = linear._forward_hooks
    for key, hook in list(hooks.items()):
        if getattr(hook, "__self__", None) is linear.lora:
            del hooks[key]
    del linear.lora


def unfreeze(residents: Residents) -> None:
    for parameter in residents.unfrozen:
        parameter.requires_grad_(True)


def activate(network: nn.Module, name: str | None) -> None:
    """Compute with this adapter from now on, or with the base alone. Raises RequestError for an unknown name."""
    residents = residents_of(network) if name is None else having(network, name)
    if residents.merged not in (None, name):
        raise RequestError(f"adapter {residents.merged!r} is merged: unmerge it first")
    residents.active = name


@contextmanager
def adapters_by_row(network: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Within it, row i of the batch [rows, tokens] is computed with adapter names[i], or with none.

    Rows are grouped by adapter; rows without one cost nothing more. Raises RequestError for an unknown name.
    """
    chosen = sorted({name for name in names if name is not None})
    residents = residents_of(network)
    for name in chosen:
        having(network, name)
    if residents.merged is not None:
        raise RequestError(f"adapter {residents.merged!r} is merged: every row would have it")
    device = next(network.parameters()).device
    before = residents.rows, residents.num_rows
    residents.rows = {
        name: torch.tensor([i for i, n in enumerate(names) if n == name], device=device)
        for name in chosen
    }
    residents.num_rows = len(names)
    try:
        yield
    finally:
        residents.rows, residents.num_rows = before


def train_only(network: nn.Module, name: str) -> None:
    """Activate this adapter and let its parameters train, and no others of the network."""
    activate(network, name)
    network.requires_grad_(False)
    for _, adapters in adapted_layers(network).values():
        if name in adapters:
            adapters[name].requires_grad_(True)


def trainable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """What an optimizer should get: the parameters that are not frozen, by name."""
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


def adapters_of(network: nn.Module) -> dict[str, LoraConfig]:
    """The resident adapters by name, in the order in which they came."""
    return dict(residents_of(network).configs)


def linears_of(network: nn.Module) -> dict[str, AnyLinear]:
    """Every layer that can be adapted, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, AnyLinear) and name.rpartition(".")[2] not in _USED_AS_MATRIX
    }


def adapted_layers(network: nn.Module) -> dict[str, tuple[nn.Module, Adapters]]:
    """Every layer that has adapters, by name."""
    found = {}
    for name, linear in network.named_modules():
        adapters = getattr(linear, "lora", None)
        if isinstance(adapters, Adapters):
            found[name] = (linear, adapters)
    return found


def residents_of(network: nn.Module) -> Residents:
    """What the network's layers share; a new one where none is adapted."""
    found = (module.residents for module in network.modules() if isinstance(module, Adapters))
    return next(found, None) or Residents()


def having(network: nn.Module, name: str) -> Residents:
    residents = residents_of(network)
    if name not in residents.configs:
        known = ", ".join(residents.configs) or "there are none"
        raise RequestError(
            f"there is no adapter {name!r} (resident: {known}).{nearest(name, residents.configs)}"
        )
    return residents


def _inside(module: str) -> bool:
    return "lora" in module.split(".")
