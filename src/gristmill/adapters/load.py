"""An adapter read from a PEFT directory; the whole of it is checked before anything is put on the network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gristmill.adapters.config import LoraConfig
from gristmill.adapters.disk import DiskLayer, Rule, disk_layers
from gristmill.adapters.lora import Lora
from gristmill.adapters.peft_config import read_peft_config
from gristmill.adapters.resident import attach, device_of, linears_of
from gristmill.errors import RequestError

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


def load_adapter(
    network: nn.Module, path: str | Path, name: str = "default", rules: Iterable[Rule] = ()
) -> LoraConfig:
    """Make the adapter in a directory that `peft` or `save_adapter` wrote resident and active, and frozen.

    `rules` say which layers of the files are which of the network's, for a family whose names differ; the
    patterns of the returned config are over the names in the files. Raises RequestError, naming the file and
    the key or tensor, for what is missing, left over, damaged, of another shape, or not supported.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise RequestError(f"there is no adapter at {directory}")
    config = read_peft_config(directory)
    file = directory / WEIGHTS
    linears = linears_of(network)
    layers = [layer for layer in disk_layers(linears, rules) if config.targets(layer.name)]
    if not layers:
        raise RequestError(
            f"{directory / 'adapter_config.json'}: target_modules "
            f"{config.target_modules!r} is no layer of this model that can be adapted"
        )
    tensors = _read(file)
    loras: dict[str, Lora] = {}
    for layer in layers:
        loras.update(_parts(layer, config, tensors, file))
    if tensors:
        raise RequestError(
            f"{file}: there is no place for the tensor {sorted(tensors)[0]}: this model has no such "
            "layer, or it cannot be adapted, or target_modules leaves it out"
        )
    for module, lora in loras.items():
        loras[module] = lora.to(device_of(linears[module]))
    attach(network, name, config, loras)
    return config


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        old = file.with_name("adapter_model.bin")
        hint = " (adapter_model.bin can run code and is not read)" if old.is_file() else ""
        raise RequestError(f"{file.parent} is not an adapter: {file.name} is missing{hint}")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{file} is damaged or incomplete: {error}") from error


def _parts(
    layer: DiskLayer, config: LoraConfig, tensors: dict[str, Tensor], file: Path
) -> dict[str, Lora]:
    """The layer's tensors, taken out of `tensors` and checked, as an adapter of each of its modules."""
    rank, scale = config.rank_of(layer.name), config.scale_of(layer.name)

    def take(key: str, *shape: int) -> Tensor:
        full = f"{PREFIX}{layer.name}.{key}"
        if full not in tensors:
            raise RequestError(f"{file}: the tensor {full} is missing")
        tensor = tensors.pop(full)
        if tuple(tensor.shape) != shape:
            raise RequestError(
                f"{file}: the tensor {full} is {list(tensor.shape)}, not {list(shape)} (rank {rank} "
                "on this model)"
            )
        if not tensor.is_floating_point():
            raise RequestError(f"{file}: the tensor {full} holds {tensor.dtype}, not real numbers")
        if not bool(torch.isfinite(tensor).all()):
            raise RequestError(f"{file}: the tensor {full} holds NaN or infinity")
        return tensor.float()

    A = take("lora_A.weight", rank, layer.in_features)
    B = layer.split(take("lora_B.weight", layer.out_features, rank))
    magnitudes: list[Tensor | None] = [None] * len(layer.modules)
    if config.dora:
        magnitudes = list(layer.split(take("lora_magnitude_vector", layer.out_features)))
    return {
        module: Lora(A.clone(), b.clone(), scale, config.dropout, m if m is None else m.clone())
        for module, b, m in zip(layer.modules, B, magnitudes, strict=True)
    }
