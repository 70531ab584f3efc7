"""llama2.c's checkpoints (its first, headerless-but-for-seven-integers format): read, never written.

Layout (llama2.c's export.py, version 0): int32 dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size
(negative: the head is not tied to the embedding), seq_len; then float32 tensors, each kind for all layers at
once; between the last norm and the head the tables of rotary positions, which are computed here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.formats.filling import fill
from gristmill.formats.rules import Rule, each, interleaved_rows, renamed
from gristmill.model import ModelConfig, Transformer, meta_network
from gristmill.tokenizer import Tokenizer, from_llama2c

_HEADER = struct.Struct("<7i")
_EPS = 1e-5  # written into run.c


def llama2c_config(path: str | Path) -> ModelConfig:
    """The shape of the network in a checkpoint. Raises RequestError."""
    return _read_config(Path(path))


def load_llama2c(
    path: str | Path, dtype: torch.dtype | None, device: torch.device
) -> tuple[Transformer, Tokenizer]:
    """Network and tokenizer; the tokenizer lies beside the checkpoint as tok<vocab_size>.bin or tokenizer.bin.

    Raises RequestError, naming the file, for one that is missing, truncated or something else.
    """
    path = Path(path)
    config = _read_config(path)
    tokenizer = from_llama2c(_tokenizer_file(path, config.vocab_size), config.vocab_size)
    network = meta_network(config)
    fill(network, Llama2cSource(path), _rules(config), dtype, device)
    return network.eval(), tokenizer


def _read_config(path: Path) -> ModelConfig:
    """The configuration, once it is sure that the file is as long as it asks for."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    if len(header) < _HEADER.size:
        raise RequestError(f"{path} is too short for a llama2.c checkpoint ({size} bytes)")
    dim, hidden, layers, heads, kv_heads, vocab, context = _HEADER.unpack(header)
    sizes = (dim, hidden, layers, heads, kv_heads, abs(vocab), context)
    if min(sizes) < 1 or layers > 10_000 or dim % heads or (dim // heads) % 2 or heads % kv_heads:
        raise RequestError(f"{path} is not a llama2.c checkpoint: its header says {list(sizes)}")
    config = ModelConfig(
        family="llama",
        vocab_size=abs(vocab),
        hidden_size=dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim // heads,
        intermediate_size=hidden,
        max_seq_len=context,
        norm_eps=_EPS,
        qk_norm=False,
        tie_embeddings=vocab > 0,
    )
    needed = _HEADER.size + 4 * sum(prod(shape) for _, shape in _shapes(config))
    if needed != size:
        raise RequestError(
            f"{path} is not a whole llama2.c checkpoint: its header asks for {needed} bytes, the file has {size}"
        )
    return config


def _shapes(config: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Kinds of tensors in the file's order; those within layers come stacked."""
    d, c, w = config.hidden_size, config.head_dim, config.intermediate_size
    kv, layers = config.num_kv_heads * c, config.num_layers
    kinds: list[tuple[str, tuple[int, ...]]] = [
        ("tok_embeddings", (config.vocab_size, d)),
        ("attention_norm", (layers, d)),
        ("wq", (layers, d, d)),
        ("wk", (layers, kv, d)),
        ("wv", (layers, kv, d)),
        ("wo", (layers, d, d)),
        ("ffn_norm", (layers, d)),
        ("w1", (layers, w, d)),
        ("w2", (layers, d, w)),
        ("w3", (layers, w, d)),
        ("norm", (d,)),
        ("freq_cos", (config.max_seq_len, c // 2)),
        ("freq_sin", (config.max_seq_len, c // 2)),
    ]
    return kinds if config.tie_embeddings else [*kinds, ("output", (config.vocab_size, d))]


class Llama2cSource:
    """The tensors as views of the mapped file; layers apart, as `layers.N.kind`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        config = _read_config(path)
        data = torch.from_numpy(np.memmap(path, np.float32, mode="c", offset=_HEADER.size))
        self._tensors: dict[str, Tensor] = {}
        at = 0
        for kind, shape in _shapes(config):
            count = prod(shape)
            tensor = data[at : at + count].view(shape)
            at += count
            if kind.startswith("freq_"):
                continue
            if kind in ("tok_embeddings", "norm", "output"):
                self._tensors[kind] = tensor
            else:
                self._tensors |= {f"layers.{i}.{kind}": tensor[i] for i in range(shape[0])}

    def names(self) -> Iterable[str]:
        return self._tensors

    def place(self, name: str) -> str:
        return str(self._path)

    def load(self, name: str) -> Tensor:
        return self._tensors[name]

    def release(self, name: str) -> None:
        """The tensors are small views of one mapping."""


def _rules(config: ModelConfig) -> list[Rule]:
    found = [
        renamed("tok_embeddings", "model.embed_tokens.weight"),
        renamed("norm", "model.norm.weight"),
    ]
    if not config.tie_embeddings:
        found.append(renamed("output", "lm_head.weight"))
    plain = {
        "attention_norm": "input_layernorm",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "w1": "mlp.gate_proj",
        "w2": "mlp.down_proj",
        "w3": "mlp.up_proj",
    }
    for layer in range(config.num_layers):
        disk, ours = f"layers.{layer}", f"model.layers.{layer}"
        found += [renamed(f"{disk}.{d}", f"{ours}.{o}.weight") for d, o in plain.items()]
        for name, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
            moves = interleaved_rows(heads)
            found.append(each(f"{disk}.w{name}", f"{ours}.self_attn.{name}_proj.weight", *moves))
    return found


def _tokenizer_file(path: Path, vocab_size: int) -> Path:
    names = (f"tok{vocab_size}.bin", "tokenizer.bin")
    for name in names:
        if (path.parent / name).is_file():
            return path.parent / name
    raise RequestError(
        f"{path} needs its tokenizer beside it: {' or '.join(names)} (llama2.c's own format)"
    )
