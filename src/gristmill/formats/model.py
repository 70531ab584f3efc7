"""A network with its tokenizer, loaded from disk and saved again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.files import read_object
from gristmill.formats.families import config_from_hf
from gristmill.formats.gguf import GGUFFile
from gristmill.formats.gguf_models import gguf_config, load_gguf, plain_type, save_gguf
from gristmill.formats.hf import (
    load_network,
    read_config,
    save_hf,
    torch_device,
    torch_dtype,
)
from gristmill.formats.llama2c import llama2c_config, load_llama2c
from gristmill.formats.paths import name_of, resolve
from gristmill.kernels import Activations, use_activations
from gristmill.model import ModelConfig, Transformer
from gristmill.tokenizer import Tokenizer


class Model:
    """`network` on its device, `tokenizer` beside it; `path` is where it was loaded from.

    `generation` is the content of generation_config.json, kept when the model is saved.
    """

    def __init__(
        self,
        network: Transformer,
        tokenizer: Tokenizer,
        path: str | Path | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.path = None if path is None else Path(path)
        self.generation = dict(generation or {})

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        widen: bool = False,
        activations: Activations = "int8",
    ) -> Model:
        """Load a Hugging Face directory, a run, a GGUF file or a llama2.c checkpoint.

        Weights become `dtype` ("float32", "bfloat16", "float16", or "auto": as they are stored). Quantized ones stay
        as they are, unless `widen` asks for full precision (what it takes to train or convert). `activations` says
        what coded weights of groups and blocks are multiplied with: 8-bit codes, or "float", slower, for reference.
        Raises RequestError for whatever is missing, damaged or not supported, naming file and tensor.
        """
        found = resolve(path)
        kind, place = (None if dtype == "auto" else torch_dtype(dtype)), torch_device(device)
        generation: dict[str, Any] = {}
        if found.is_file():
            if found.suffix == ".gguf":
                network, tokenizer = load_gguf(found, kind, place, widen)
            else:
                network, tokenizer = load_llama2c(found, kind, place)
        else:
            tokenizer = Tokenizer.load(found)
            network = load_network(found, dtype, device, widen)
            generation = read_object(found / "generation_config.json")
        if activations not in ("int8", "float"):
            raise RequestError(f'activations must be "int8" or "float", not {activations!r}')
        use_activations(network, activations)
        size = network.config.vocab_size
        # Control tokens beyond the embedding are never used (Gemma 3's <image_soft_token>).
        beyond = set(range(size, tokenizer.vocab_size))
        needed = {*tokenizer.stop_ids, *tokenizer.document_start}
        if beyond - set(tokenizer.special_tokens.values()) or beyond & needed:
            raise RequestError(
                f"{found}: the tokenizer has {tokenizer.vocab_size} tokens and the model {size}; "
                "they do not belong together"
            )
        return cls(network, tokenizer, found, generation)

    @property
    def config(self) -> ModelConfig:
        return self.network.config

    @property
    def device(self) -> torch.device:
        return self.network.model.norm.weight.device

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Next-token logits: LongTensor [batch, seq] -> FloatTensor [batch, seq, vocab], no gradients.

        Raises RequestError for ids outside the vocabulary and texts longer than the context.
        """
        if tokens.ndim != 2:
            raise RequestError(f"tokens must be [batch, seq], not {list(tokens.shape)}")
        if (
            tokens.numel()
            and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocab_size
        ):
            raise RequestError(f"token ids must be from 0 to {self.config.vocab_size - 1}")
        return self.network(tokens.to(self.device))

    def save(
        self,
        path: str | Path,
        format: str = "auto",
        card: str | None = None,
        quant: str = "auto",
        quantization: str = "compressed-tensors",
    ) -> None:
        """Write a directory that transformers reads ("hf"), or one file for llama.cpp ("gguf").

        "auto": by the name, NAME.gguf or a directory. What was there before is replaced.
        `card` becomes the directory's README.md. `quant` is a GGUF file's type: F32, F16, BF16, Q8_0, Q4_K_M, …;
        "auto" keeps the weights' dtype. `quantization` is what a directory's quantized layers are written as:
        "compressed-tensors", "gptq" or "awq". Raises RequestError for what the format cannot hold.
        """
        if format == "auto":
            format = "gguf" if Path(path).suffix == ".gguf" else "hf"
        if format not in ("hf", "gguf"):
            raise RequestError(f'format {format!r} is not supported; supported are "hf" and "gguf"')
        if format == "hf":
            if quant != "auto":
                raise RequestError(f'quant is for format "gguf"; a directory cannot be {quant}')
            save_hf(
                self.network,
                path,
                self.tokenizer,
                card=card,
                generation=self.generation,
                quantization=quantization,
            )
            return
        if quant == "auto":
            quant = plain_type(self.network)
        name = "model" if self.path is None else name_of(self.path)
        save_gguf(self.network, self.tokenizer, path, quant, name)


def load_config(path: str | Path) -> ModelConfig:
    """The shape of the network in a model directory or file; no weight is read. Raises RequestError."""
    path = Path(path)
    if path.suffix == ".gguf" and path.is_file():
        return gguf_config(GGUFFile.open(path))
    if path.is_file():
        return llama2c_config(path)
    return config_from_hf(read_config(path), path / "config.json")
