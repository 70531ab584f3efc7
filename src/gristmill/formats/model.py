"""A network with its tokenizer, loaded from disk and saved again."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gristmill.errors import RequestError, nearest
from gristmill.formats.families import config_from_hf
from gristmill.formats.hf import check_quantization, read_config, read_tensors, save_hf, torch_dtype
from gristmill.formats.paths import resolve
from gristmill.kernels import replace_int8
from gristmill.model import ModelConfig, Transformer
from gristmill.tokenizer import Tokenizer


class Model:
    """`network` on its device, `tokenizer` beside it; `path` is where it was loaded from."""

    def __init__(
        self, network: Transformer, tokenizer: Tokenizer, path: str | Path | None = None
    ) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.path = None if path is None else Path(path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
    ) -> Model:
        """Load a Hugging Face directory (full precision or int8) or a run directory.

        Weights become `dtype` ("float32", "bfloat16", "float16"); 8-bit ones stay as they are. Raises
        RequestError for whatever is missing, damaged or not supported, naming file and tensor.
        """
        kind, place = torch_dtype(dtype), _device(device)
        directory = resolve(path)
        file = directory / "config.json"
        hf = read_config(directory)
        config = config_from_hf(hf, file)
        quantized = check_quantization(hf, file)
        tokenizer = Tokenizer.load(directory)
        if tokenizer.vocab_size > config.vocab_size:
            raise RequestError(
                f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens and the model "
                f"{config.vocab_size}; they do not belong together"
            )
        tensors = _without_duplicates(read_tensors(directory), config, directory)
        with torch.device("meta"):
            network = Transformer(config)
            if quantized:
                _check_scales(tensors, network, directory)
                replace_int8(network, tensors)
        _check(tensors, network, directory)
        tensors = {name: _cast(name, tensor, kind) for name, tensor in tensors.items()}
        network.load_state_dict(tensors, assign=True)
        return cls(network.to(place).eval(), tokenizer, directory)

    @property
    def config(self) -> ModelConfig:
        return self.network.config

    @property
    def device(self) -> torch.device:
        return self.network.model.embed_tokens.weight.device

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

    def save(self, directory: str | Path, format: str = "hf", card: str | None = None) -> None:
        """Write a directory that transformers and `Model.load` read; `card` becomes its README.md."""
        if format != "hf":
            raise RequestError(f'format {format!r} is not supported; supported is "hf"')
        save_hf(self.network, directory, self.tokenizer, card=card)


def _device(name: str | torch.device) -> torch.device:
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


def _without_duplicates(
    tensors: dict[str, Tensor], config: ModelConfig, directory: Path
) -> dict[str, Tensor]:
    """Drop what older writers store twice: rotary tables, and a head equal to the embedding it is tied to."""
    tensors = {n: t for n, t in tensors.items() if not n.endswith("rotary_emb.inv_freq")}
    embedding, head = tensors.get("model.embed_tokens.weight"), tensors.get("lm_head.weight")
    if config.tie_embeddings and head is not None:
        if embedding is None or not torch.equal(embedding, head):
            raise RequestError(
                f"{directory}: config.json ties the embeddings, yet lm_head.weight differs from "
                "model.embed_tokens.weight; set tie_word_embeddings to false to use both"
            )
        del tensors["lm_head.weight"]
    return tensors


def _check_scales(tensors: dict[str, Tensor], network: Transformer, directory: Path) -> None:
    linears = {name for name, module in network.named_modules() if hasattr(module, "in_features")}
    for key in sorted(tensors):
        name = key.removesuffix(".weight_scale")
        if name != key and name not in linears:
            raise RequestError(f"{directory}: {key} belongs to no layer of this architecture")
        if name != key and f"{name}.weight" not in tensors:
            raise RequestError(f"{directory}: {key} is there, yet {name}.weight is missing")


def _check(tensors: dict[str, Tensor], network: Transformer, directory: Path) -> None:
    """Every tensor there, none too many, each of its shape and sane: nothing is left to chance."""
    expected = network.state_dict()
    for name, wanted in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise RequestError(f"{directory}: the tensor {name} is missing from the weights")
        if tensor.shape != wanted.shape:
            raise RequestError(
                f"{directory}: the tensor {name} has shape {list(tensor.shape)}, and config.json "
                f"asks for {list(wanted.shape)}"
            )
        if tensor.dtype != wanted.dtype and not (
            tensor.is_floating_point() and wanted.is_floating_point()
        ):
            raise RequestError(
                f"{directory}: the tensor {name} holds {_name(tensor.dtype)}, expected was "
                f"{_name(wanted.dtype)}"
            )
        small = tensor.ndim == 1 or name.endswith(".weight_scale")
        if small and not bool(torch.isfinite(tensor).all()):
            raise RequestError(f"{directory}: the tensor {name} holds NaN or infinity")
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise RequestError(f"{directory}: the architecture has no place for the tensor {extra[0]}")


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.float() if name.endswith(".weight_scale") else tensor.to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
