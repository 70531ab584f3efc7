"""Whole models as GGUF files: network, tokenizer and chat template in one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gristmill.errors import RequestError
from gristmill.formats.filling import fill
from gristmill.formats.gguf import GGUFFile, write_gguf
from gristmill.formats.gguf.mixtures import (
    FILE_TYPES,
    QUANTIZATION_VERSION,
    mixture_name,
    tensor_types,
)
from gristmill.formats.gguf_models.metadata import from_metadata, to_metadata
from gristmill.formats.gguf_models.names import architecture, rules
from gristmill.formats.gguf_models.source import PLAIN, GGUFSource
from gristmill.formats.rules import Rule
from gristmill.kernels import Int8Linear
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
    path: str | Path, dtype: torch.dtype | None, device: torch.device
) -> tuple[Transformer, Tokenizer]:
    """Network and tokenizer of a GGUF file; quantized weights are widened to `dtype`.

    None: that of the embedding, where it is not quantized, else float32, which holds their values exactly.

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
    fill(network, GGUFSource(file, dtype), rules(config, network), dtype, device)
    return network.eval(), tokenizer


def plain_type(network: Transformer) -> str:
    """The type of GGUF file that keeps the weights' dtype: F32, F16 or BF16."""
    names = {dtype: type.name for type, dtype in PLAIN.items()}
    return names[network.model.embed_tokens.weight.dtype]


def save_gguf(
    network: Transformer, tokenizer: Tokenizer, path: str | Path, quant: str, name: str = "model"
) -> None:
    """Write one GGUF file that llama.cpp runs. `quant`: F32, F16, BF16, Q8_0, Q4_0, Q4_K_M, …

    Raises RequestError for a network that llama.cpp would run differently, and for one that is 8-bit here.
    """
    if any(isinstance(module, Int8Linear) for module in network.modules()):
        raise RequestError(
            "this model's weights are 8-bit already; make the GGUF from the full-precision model"
        )
    metadata, scaling = to_metadata(network.config)
    state = network.state_dict()
    meta = meta_network(network.config).state_dict()
    entries: list[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]] = []
    for rule in rules(network.config, network):
        (shape,) = (tuple(t.shape) for t in rule.save([meta[n] for n in rule.ours]))
        entries.append((rule.disk[0], shape, _later(rule, state)))
    for key, tensor in scaling.items():
        entries.append((key, tuple(tensor.shape), tensor.numpy))
    quant = mixture_name(quant)
    types = tensor_types(quant, [(key, shape) for key, shape, _ in entries], metadata)
    general: dict[str, Any] = {
        "general.name": name,
        "general.file_type": FILE_TYPES[quant],
    }
    if quant not in ("F32", "F16", "BF16"):
        general["general.quantization_version"] = QUANTIZATION_VERSION
    vocabulary = to_gguf_metadata(tokenizer, network.config.vocab_size)
    write_gguf(
        path,
        {"general.architecture": architecture(network.config), **general, **metadata, **vocabulary},
        [(key, shape, types[key], source) for key, shape, source in entries],
    )


def _later(rule: Rule, state: dict[str, torch.Tensor]) -> Callable[[], np.ndarray]:
    """The tensor as float32, made when its turn to be written comes."""

    def make() -> np.ndarray:
        (tensor,) = rule.save([state[name].detach() for name in rule.ours])
        return tensor.float().cpu().contiguous().numpy()

    return make
