"""Whole models as GGUF files: network, tokenizer and chat template in one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gristmill.errors import RequestError
from gristmill.formats.filling import fill
from gristmill.formats.gguf import GGMLType, GGUFFile, quantize, write_gguf
from gristmill.formats.gguf.mixtures import (
    FILE_TYPES,
    QUANTIZATION_VERSION,
    mixture_name,
    tensor_types,
)
from gristmill.formats.gguf_models.coded import put_coded
from gristmill.formats.gguf_models.metadata import from_metadata, to_metadata
from gristmill.formats.gguf_models.names import architecture, rules
from gristmill.formats.gguf_models.source import PLAIN, GGUFSource
from gristmill.formats.quantized import quantized_layers
from gristmill.formats.rules import Rule
from gristmill.model import ModelConfig, Transformer, meta_network
from gristmill.tokenizer import Tokenizer, from_gguf_metadata, to_gguf_metadata


def gguf_config(file: GGUFFile) -> ModelConfig:
    """The shape of the network in a GGUF file. Raises RequestError."""
    scaling = {
        name: torch.from_numpy(file.load(name)) for name in file.tensors if name.startswith("rope_")
    }
    embedding = file.tensors.get("token_embd.weight")
    rows = None if embedding is None else embedding.shape[0]
    tied = "output.weight" not in file.tensors
    return from_metadata(file.metadata, scaling, tied, file.path, rows)


def load_gguf(
    path: str | Path, dtype: torch.dtype | None, device: torch.device, widen: bool = False
) -> tuple[Transformer, Tokenizer]:
    """Network and tokenizer of a GGUF file. Quantized weights stay as they are, where there is a kernel for them.

    With `widen` they become `dtype`. None: that of the embedding, where it is not quantized, else float32, which
    holds their values exactly.

    Raises RequestError, naming file, key and tensor.
    """
    file = GGUFFile.open(path)
    config = gguf_config(file)
    try:
        tokenizer = from_gguf_metadata(file.metadata)
    except RequestError as error:
        raise RequestError(f"{file.path}: {error}") from error
    network = meta_network(config)
    if dtype is None:
        embedding = file.tensors.get("token_embd.weight")
        dtype = torch.float32 if embedding is None else PLAIN.get(embedding.type, torch.float32)
    found = rules(config, network)
    done = set() if widen else put_coded(network, file, found)
    found = [rule for rule in found if rule.disk[0] not in done]
    fill(network, GGUFSource(file, dtype, done), found, dtype, device)
    return network.to(device).eval(), tokenizer


def plain_type(network: Transformer) -> str:
    """The type of GGUF file that keeps the weights' dtype: F32, F16 or BF16."""
    names = {dtype: type.name for type, dtype in PLAIN.items()}
    return names[network.model.embed_tokens.weight.dtype]


def save_gguf(
    network: Transformer,
    tokenizer: Tokenizer,
    path: str | Path,
    quant: str,
    name: str = "model",
    *,
    types: Mapping[str, GGMLType] | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write one GGUF file that llama.cpp runs. `quant`: F32, F16, BF16, Q8_0, Q4_0, Q4_K_M, …

    types: of every tensor, in place of those of the mixture `quant`; the file then names no mixture. importance: for
    layers by their names in the network, how much each input matters, float32 [in]; it weighs rounding errors.

    Raises RequestError for a network that llama.cpp would run differently, and for one that is 8-bit here.
    """
    if quantized_layers(network):
        raise RequestError(
            "this model's weights are quantized already; make the GGUF from the full-precision model"
        )
    quant = mixture_name(quant)
    shapes, metadata = gguf_shapes(network)
    _, scaling = to_metadata(network.config)
    state = network.state_dict()
    sources: dict[str, Callable[[], np.ndarray]] = {k: t.numpy for k, t in scaling.items()}
    chosen = types or tensor_types(quant, list(shapes.items()), metadata)
    for rule in rules(network.config, network):
        key, layer = rule.disk[0], rule.ours[0].removesuffix(".weight")
        sources[key] = _later(rule, state)
        if importance and layer in importance and chosen[key].block_size > 1:
            sources[key] = _rounded(sources[key], chosen[key], importance[layer])
    general: dict[str, Any] = {"general.name": name}
    if types is None:
        general["general.file_type"] = FILE_TYPES[quant]
    if types is not None or quant not in ("F32", "F16", "BF16"):
        general["general.quantization_version"] = QUANTIZATION_VERSION
    vocabulary = to_gguf_metadata(tokenizer, network.config.vocab_size)
    write_gguf(
        path,
        {"general.architecture": architecture(network.config), **general, **metadata, **vocabulary},
        [(key, shape, chosen[key], sources[key]) for key, shape in shapes.items()],
        threads=torch.get_num_threads(),
    )


def gguf_shapes(network: Transformer) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Row-major shapes of the tensors that a file of this network holds, and the metadata that says what it is."""
    metadata, scaling = to_metadata(network.config)
    meta = meta_network(network.config).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for rule in rules(network.config, network):
        (shapes[rule.disk[0]],) = (tuple(t.shape) for t in rule.save([meta[n] for n in rule.ours]))
    shapes |= {key: tuple(tensor.shape) for key, tensor in scaling.items()}
    return shapes, metadata


def _rounded(
    source: Callable[[], np.ndarray], type: GGMLType, importance: np.ndarray
) -> Callable[[], np.ndarray]:
    return lambda: quantize(source(), type, importance, torch.get_num_threads())


def _later(rule: Rule, state: dict[str, torch.Tensor]) -> Callable[[], np.ndarray]:
    """The tensor as float32, made when its turn to be written comes."""

    def make() -> np.ndarray:
        (tensor,) = rule.save([state[name].detach() for name in rule.ours])
        return tensor.float().cpu().contiguous().numpy()

    return make
