"""An adapter written as a PEFT directory, which `peft` and what is built on it load."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from gristmill.adapters.config import ALL_LINEAR, LoraConfig
from gristmill.adapters.disk import Rule, disk_layers, fuse
from gristmill.adapters.load import PREFIX, WEIGHTS
from gristmill.adapters.lora import Lora
from gristmill.adapters.peft_config import to_peft
from gristmill.adapters.resident import adapted_layers, having, linears_of
from gristmill.errors import RequestError
from gristmill.files import write_json, write_with


def save_adapter(
    network: nn.Module,
    path: str | Path,
    name: str = "default",
    base: str | Path | None = None,
    rules: Iterable[Rule] = (),
) -> None:
    """Write adapter_config.json and adapter_model.safetensors (fp32). The config comes last.

    `base` is the name or path of the model that it belongs to; `rules` as in `load_adapter`. Raises
    RequestError for an unknown name, a path that is a file, and DoRA on a part of a layer of the files.

    On a mixture of experts `peft` 0.21 takes gate_proj, up_proj and down_proj for the experts, so that it does
    not load an adapter of the dense or shared MLPs beside them; `load_adapter` does.
    """
    config, directory = having(network, name).configs[name], Path(path)
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"cannot save an adapter in {directory}: it is a file")
    loras = {
        module: lora
        for module, (_, adapters) in adapted_layers(network).items()
        if name in adapters and isinstance(lora := adapters[name], Lora)
    }
    layers = disk_layers(linears_of(network), rules)
    on_disk = {
        layer.name: fuse(layer, [loras.get(module) for module in layer.modules])
        for layer in layers
        if any(module in loras for module in layer.modules)
    }
    config = _on_disk(config, on_disk, [layer.name for layer in layers])
    directory.mkdir(parents=True, exist_ok=True)
    # A reader must not pair the old config with new weights.
    (directory / "adapter_config.json").unlink(missing_ok=True)
    tensors: dict[str, Tensor] = {}
    for layer, lora in on_disk.items():
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = lora.A.detach()
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = lora.B.detach()
        if lora.magnitude is not None:
            tensors[f"{PREFIX}{layer}.lora_magnitude_vector"] = lora.magnitude.detach()
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    write_with(directory / WEIGHTS, lambda p: save_file(tensors, p, metadata={"format": "pt"}))
    write_json(
        directory / "adapter_config.json", to_peft(config, None if base is None else str(base))
    )


def _on_disk(config: LoraConfig, on_disk: dict[str, Lora], layers: list[str]) -> LoraConfig:
    """The config as the file's reader understands it: "all-linear" would mean other layers elsewhere, and
    patterns over our names mean nothing where the file has its own; those are spelled out layer by layer."""
    if config.target_modules == ALL_LINEAR:
        ends = {layer.rpartition(".")[2] for layer in on_disk}
        config = replace(config, target_modules=tuple(sorted(ends)))
    if [layer for layer in layers if config.targets(layer)] == list(on_disk) and all(
        config.rank_of(layer) == len(lora.A) and math.isclose(config.scale_of(layer), lora.scale)
        for layer, lora in on_disk.items()
    ):
        return config
    scaled_by = {n: math.sqrt(len(a.A)) if config.rslora else len(a.A) for n, a in on_disk.items()}
    return replace(
        config,
        target_modules=tuple(on_disk),
        exclude_modules=(),
        rank_pattern={layer: len(lora.A) for layer, lora in on_disk.items()},
        alpha_pattern={layer: lora.scale * scaled_by[layer] for layer, lora in on_disk.items()},
        layers_to_transform="all",
    )
