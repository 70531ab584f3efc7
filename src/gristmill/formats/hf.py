"""Hugging Face directories: config.json, safetensors (sharded where large), generation_config.json, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gristmill.errors import RequestError, nearest
from gristmill.files import read_object, write_json, write_text, write_with
from gristmill.formats.families import config_from_hf, config_to_hf, family_of
from gristmill.formats.filling import dtype_name, fill, stored
from gristmill.formats.rules import Rule
from gristmill.formats.source import DirectorySource
from gristmill.kernels import Int8Linear, replace_int8
from gristmill.model import Linear, Transformer, meta_network
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
) -> Transformer:
    """The network of a model directory, in evaluation mode; no tokenizer is needed.

    Weights become `dtype` ("auto": each as it is stored); 8-bit ones stay as they are. Raises RequestError for
    whatever is missing, damaged or not supported, naming file and tensor.
    """
    kind, place = (None if dtype == "auto" else torch_dtype(dtype)), torch_device(device)
    hf, file = read_config(directory), Path(directory) / "config.json"
    config = config_from_hf(hf, file)
    family = family_of(config)
    quantized = check_quantization(hf, file)
    source = DirectorySource(directory, family.prefix)
    network = meta_network(config)
    rules = family.rules(config)
    if quantized:
        _check_scales(source, network, rules)
        with torch.device("meta"):
            replace_int8(network, source.names())
    fill(network, source, rules, kind, place, family.unused(config))
    return network.eval()


def save_hf(
    network: Transformer,
    directory: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    card: str | None = None,
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a directory that transformers loads, in the dtype of the weights. config.json comes last.

    Layers replaced by `Int8Linear` are written as compressed-tensors (int-quantized). `card` becomes
    README.md; `generation` is kept in generation_config.json. An older model in the directory is replaced; other
    files there are left alone. Raises RequestError for what the family's files cannot say.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"cannot save a model in {directory}: it is a file")
    hf = config_to_hf(network.config)
    rules = family_of(network.config).rules(network.config)
    quantization = _quantization_config(network, rules)
    expected = {name.removesuffix("_scale") for name in network.state_dict()}
    added = sorted(expected - set(meta_network(network.config).state_dict()))
    if added:
        raise RequestError(
            f"this network holds {added[0]}, which is no part of a {network.config.family}: merge its adapters "
            "first (gristmill.adapters.merge_and_unload), or save them alone (save_adapter)"
        )
    directory.mkdir(parents=True, exist_ok=True)
    _remove(directory, _UNFINISHED)  # of a save that was killed
    try:
        shards, total = _write_shards(stored(network, rules), directory, max_shard_bytes)
        # The new weights are there. A reader must not pair the old config with them.
        _remove(directory, ("config.json", "model*.safetensors*", "pytorch_model*.bin*"))
        _name_shards(directory, shards, total)
    finally:
        _remove(directory, _UNFINISHED)
    dtype = dtype_name(network.model.embed_tokens.weight.dtype)
    ids = _token_ids(tokenizer)
    config = {**hf, "dtype": dtype, **ids}
    if quantization is not None:
        config["quantization_config"] = quantization
    if tokenizer is not None:
        tokenizer.save(directory)
        stops = sorted(tokenizer.stop_ids)
        kept = {**(generation or {}), **ids, "eos_token_id": stops}
        write_json(directory / "generation_config.json", kept)
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


def _quantization_config(network: Transformer, rules: Sequence[Rule]) -> dict[str, Any] | None:
    """compressed-tensors' description of the Int8Linear layers in the network; None without any.

    Raises RequestError where the family stores such a layer together with others: no reader would find it.
    """
    quantized = {n for n, module in network.named_modules() if isinstance(module, Int8Linear)}
    if not quantized:
        return None
    moved = {name.removesuffix(".weight") for rule in rules for name in rule.ours}
    if moved & quantized:
        raise RequestError(
            f"8-bit weights cannot be saved for the family {network.config.family}, whose files hold "
            f"{sorted(moved & quantized)[0]} under another name"
        )
    kept = [name for name, module in network.named_modules() if isinstance(module, Linear)]
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


def _check_scales(source: DirectorySource, network: Transformer, rules: Sequence[Rule]) -> None:
    linears = {name for name, module in network.named_modules() if hasattr(module, "in_features")}
    linears -= {name.removesuffix(".weight") for rule in rules for name in rule.ours}
    names = set(source.names())
    for key in sorted(names):
        name = key.removesuffix(".weight_scale")
        if name != key and name not in linears:
            raise RequestError(
                f"{source.place(key)}: {key} belongs to no layer of this architecture"
            )
        if name != key and f"{name}.weight" not in names:
            raise RequestError(f"{source.place(key)}: {key} is there, yet {name}.weight is missing")


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
