"""Hugging Face directories: config.json, safetensors (sharded where large), generation_config.json, tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gristmill.errors import RequestError, nearest
from gristmill.files import read_object, write_json, write_text, write_with
from gristmill.formats.families import config_from_hf, config_to_hf, family_of
from gristmill.formats.filling import dtype_name, fill
from gristmill.formats.quantized import (
    fill_quantized,
    quantized_layers,
    read_quantization,
    written,
)
from gristmill.formats.source import DirectorySource
from gristmill.model import Transformer, meta_network
from gristmill.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000
_UNFINISHED = (".shard-*", "..shard-*.tmp")


def read_config(directory: str | Path) -> dict[str, Any]:
    """config.json as it stands. Raises RequestError when it is missing or not a JSON object."""
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise RequestError(f"{directory} is not a model directory: config.json is missing")
    return read_object(file)


def load_network(
    directory: str | Path,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    widen: bool = False,
) -> Transformer:
    """The network of a model directory, in evaluation mode; no tokenizer is needed.

    Weights become `dtype` ("auto": each as it is stored). Quantized layers stay as they are, unless `widen` asks for
    full precision. Raises RequestError for whatever is missing, damaged or not supported, naming file and tensor.
    """
    kind, place = (None if dtype == "auto" else torch_dtype(dtype)), torch_device(device)
    hf, file = read_config(directory), Path(directory) / "config.json"
    config = config_from_hf(hf, file)
    family = family_of(config)
    quantization = read_quantization(hf, Path(directory))
    source = DirectorySource(directory, family.prefix)
    network, rules, unused = meta_network(config), family.rules(config), family.unused(config)
    if quantization is None:
        fill(network, source, rules, kind, place, unused)
    else:
        fill_quantized(network, source, rules, quantization, kind, place, unused, widen)
    return network.eval()


def save_hf(
    network: Transformer,
    directory: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    card: str | None = None,
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    quantization: str = "compressed-tensors",
) -> None:
    """Write a directory that transformers loads, in the dtype of the weights. config.json comes last.

    Quantized layers are written as they are, in the format `quantization`: "compressed-tensors", "gptq" or "awq".
    `card` becomes README.md; `generation` is kept in generation_config.json. An older model in the directory is
    replaced; other files there are left alone. Raises RequestError for what the format or the family cannot say.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"cannot save a model in {directory}: it is a file")
    hf = config_to_hf(network.config)
    rules = family_of(network.config).rules(network.config)
    if added := _added(network):
        raise RequestError(
            f"this network holds {added}, which is no part of a {network.config.family}: merge its adapters "
            "first (gristmill.adapters.merge_and_unload), or save them alone (save_adapter)"
        )
    tensors, described = written(network, rules, quantization)
    directory.mkdir(parents=True, exist_ok=True)
    _remove(directory, _UNFINISHED)  # of a save that was killed
    try:
        shards, total = _write_shards(tensors, directory, max_shard_bytes)
        # The new weights are there. A reader must not pair the old config with them.
        _remove(directory, ("config.json", "model*.safetensors*", "pytorch_model*.bin*"))
        _name_shards(directory, shards, total)
    finally:
        _remove(directory, _UNFINISHED)
    dtype = dtype_name(network.model.embed_tokens.weight.dtype)
    ids = _token_ids(tokenizer)
    config = {**hf, "dtype": dtype, **ids}
    if described is not None:
        config["quantization_config"] = described
    if tokenizer is not None:
        tokenizer.save(directory)
        stops = sorted(tokenizer.stop_ids)
        kept = {**(generation or {}), **ids, "eos_token_id": stops}
        write_json(directory / "generation_config.json", kept)
    if card is not None:
        write_text(directory / "README.md", card)
    write_json(directory / "config.json", config)


def _added(network: Transformer) -> str:
    """A tensor that the family's network has not; "" where there is none."""
    layers = quantized_layers(network)
    names = {name for name in network.state_dict() if name.rpartition(".")[0] not in layers}
    return min(names - set(meta_network(network.config).state_dict()), default="")


def _token_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def _write_shards(
    tensors: Iterable[tuple[str, Tensor]], directory: Path, max_shard_bytes: int
) -> tuple[list[list[str]], int]:
    """Write .shard-0, .shard-1, … as they fill up; returns the tensors of each, and the bytes of all."""
    shard: dict[str, Tensor] = {}
    written: list[list[str]] = []
    size = total = 0

    def save(path: Path) -> None:
        # transformers looks for the format before it reads a file
        save_file(shard, path, metadata={"format": "pt"})
        path.chmod(directory.stat().st_mode & 0o666)  # the library writes for its owner alone

    def write() -> None:
        target = directory / f".shard-{len(written)}"
        write_with(target, save)
        written.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_shard_bytes:
            write()
            size = 0
        shard[name] = tensor.cpu().contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    return written, total


def _name_shards(directory: Path, shards: list[list[str]], total: int) -> None:
    """Give them the names that tell how many there are, and write the index."""
    if len(shards) == 1:
        (directory / ".shard-0").rename(directory / "model.safetensors")
        return
    weight_map = {}
    for number, names in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f".shard-{number}").rename(directory / name)
        weight_map.update(dict.fromkeys(names, name))
    write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def _remove(directory: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for file in directory.glob(pattern):
            file.unlink(missing_ok=True)


def torch_device(name: str | torch.device) -> torch.device:
    """A device that this machine has. Raises RequestError, naming the nearest."""
    try:
        device = torch.device(name)
    except RuntimeError:
        kinds = ("cpu", "cuda", "mps", "xpu")
        raise RequestError(
            f"device {str(name)!r} is not one torch knows.{nearest(str(name), kinds)}"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError('device "cuda": this machine has no usable CUDA GPU; use device "cpu"')
    return device


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """ "float32", "bfloat16" or "float16" as torch's. Raises RequestError, naming the nearest."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(name, torch.dtype) and name in known.values():
        return name
    if name not in known:
        raise RequestError(
            f"dtype {str(name)!r} is not one of {', '.join(known)}.{nearest(str(name), known)}"
        )
    return known[str(name)]
