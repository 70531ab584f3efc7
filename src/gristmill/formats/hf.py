"""Hugging Face directories: config.json, safetensors (sharded where large), generation_config.json, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gristmill.errors import RequestError, nearest
from gristmill.files import read_json, write_json, write_text, write_with
from gristmill.formats.families import config_from_hf, config_to_hf
from gristmill.kernels import Int8Linear
from gristmill.model import ModelConfig, Transformer
from gristmill.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000


def load_config(directory: str | Path) -> ModelConfig:
    """The shape of the network in a model directory. Raises RequestError."""
    return config_from_hf(read_config(directory), Path(directory) / "config.json")


def read_config(directory: str | Path) -> dict[str, Any]:
    """config.json as it stands. Raises RequestError when it is missing or not a JSON object."""
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise RequestError(f"{directory} is not a model directory: config.json is missing")
    try:
        hf = read_json(file)
    except ValueError as error:
        raise RequestError(f"{file} is not JSON: {error}") from error
    if not isinstance(hf, dict):
        raise RequestError(f"{file} must hold a JSON object")
    return hf


def read_tensors(directory: str | Path) -> dict[str, Tensor]:
    """Every tensor of a model directory, memory-mapped, in the dtype it has on disk.

    Raises RequestError, with the file, for a missing, truncated or malformed one.
    """
    tensors: dict[str, Tensor] = {}
    for file, names in _shards(Path(directory)):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys() if names is None else names:
                    tensors[name] = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{file} is damaged or incomplete: {error}") from error
    return tensors


def _shards(directory: Path) -> Iterator[tuple[Path, list[str] | None]]:
    """The files that hold the weights, and which tensors to take from each (None: all)."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        yield single, None
        return
    if not index.is_file():
        raise RequestError(f"{directory} holds no weights: model.safetensors is missing")
    try:
        weight_map: dict[str, str] = read_json(index)["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{index} is not an index of safetensors: {error!r}") from error
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise RequestError(f"{index}: a shard must be a file beside it, not {name!r}")
        if not (directory / name).is_file():
            raise RequestError(f"{directory / name} is missing; {index.name} names it")
        yield directory / name, sorted(key for key, file in weight_map.items() if file == name)


def save_hf(
    network: Transformer,
    directory: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    card: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a directory that transformers loads, in the dtype of the weights. config.json comes last.

    Layers replaced by `Int8Linear` are written as compressed-tensors (int-quantized). `card` becomes
    README.md. An older model in the directory is replaced; other files there are left alone.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"cannot save a model in {directory}: it is a file")
    directory.mkdir(parents=True, exist_ok=True)
    # A reader must not pair the old config with new weights.
    (directory / "config.json").unlink(missing_ok=True)
    for old in directory.glob("model*.safetensors*"):
        old.unlink()
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    _write_tensors(tensors, directory, max_shard_bytes)
    dtype = str(network.model.embed_tokens.weight.dtype).removeprefix("torch.")
    config = {**config_to_hf(network.config), "dtype": dtype}
    ids = _token_ids(tokenizer)
    config.update(ids)
    quantization = _quantization_config(network)
    if quantization is not None:
        config["quantization_config"] = quantization
    if tokenizer is not None:
        tokenizer.save(directory)
        stops = sorted(tokenizer.stop_ids)
        write_json(directory / "generation_config.json", {**ids, "eos_token_id": stops})
    if card is not None:
        write_text(directory / "README.md", card)
    write_json(directory / "config.json", config)


def _token_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def _write_tensors(tensors: dict[str, Tensor], directory: Path, max_shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes

    def write(name: str, shard: dict[str, Tensor]) -> None:
        # transformers looks for the format before it reads a file
        write_with(directory / name, lambda path: save_file(shard, path, metadata={"format": "pt"}))

    if len(shards) == 1:
        write("model.safetensors", shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(name, shard)
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def _quantization_config(network: Transformer) -> dict[str, Any] | None:
    """compressed-tensors' description of the Int8Linear layers in the network; None without any."""
    if not any(isinstance(module, Int8Linear) for module in network.modules()):
        return None
    kept = [
        name
        for name, module in network.named_modules()
        if type(module).__name__ == "Linear" and not isinstance(module, Int8Linear)
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                # Without this key compressed-tensors 0.20 expects pack-quantized: transformers would
                # load random weights in place of these.
                "format": "int-quantized",
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 8,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "channel",
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        # transformers always has an lm_head; ours is the embedding when tied, and is not quantized
        "ignore": sorted({*kept, *(["lm_head"] if network.config.tie_embeddings else [])}),
    }


def check_quantization(hf: dict[str, Any], file: Path) -> bool:
    """Whether a config.json says int8 weights. Raises RequestError for a quantization we do not read."""
    found = hf.get("quantization_config")
    if found is None:
        return False
    if not isinstance(found, dict):
        raise RequestError(f"{file}: quantization_config must be an object, not {found!r}")
    kinds: list[Any] = [[found.get("quant_method"), found.get("format")]]
    try:
        for group in (found.get("config_groups") or {}).values():
            weights = group.get("weights") or {}
            kinds.append([weights.get(k) for k in ("num_bits", "type", "symmetric", "strategy")])
    except AttributeError:
        raise RequestError(f"{file}: config_groups must be an object of objects") from None
    if kinds != [["compressed-tensors", "int-quantized"], [8, "int", True, "channel"]]:
        raise RequestError(
            f"{file}: this quantization is not read yet ({json.dumps(kinds)}); read is "
            "compressed-tensors int-quantized: 8 bits, symmetric, one scale a channel"
        )
    return True


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
