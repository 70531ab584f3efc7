"""A small real corpus as token shards, a tokenizer, and shapes that train in a second."""

from __future__ import annotations

import argparse
import heapq
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from gristmill.files import write_json
from gristmill.model import ModelConfig, Transformer
from gristmill.model.init import generator_for
from gristmill.tokenizer import Tokenizer, train_bpe
from gristmill.train import PretrainConfig

VOCAB = 512
SHAPE = dict(
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=96,
    max_seq_len=128,
)
TEXTS = {
    module.__name__: Path(module.__file__).read_text(encoding="utf-8")
    for module in (heapq, textwrap, shlex, argparse)
}


def tiny_pretrain(**settings) -> PretrainConfig:
    """24 steps of 4 windows, in float32, so that no measurement chooses the arithmetic."""
    chosen = {
        **SHAPE,
        "tokens": 24 * 256,
        "batch_tokens": 256,
        "context": 64,
        "warmup_steps": 4,
        "warm_start_iterations": 6,
        "evaluations": 2,
        "evaluation_tokens": 512,
        "compute_dtype": "float32",
        **settings,
    }
    return PretrainConfig(**chosen)


def make_tokenizer() -> Tokenizer:
    return train_bpe(iter(TEXTS.values()), VOCAB)


def write_tokens(
    directory: Path, splits: Mapping[str, Mapping[str, np.ndarray]], vocab_size: int = VOCAB
) -> Path:
    """A tokens directory as the tokens stage leaves it, as far as training reads it."""
    directory.mkdir(parents=True, exist_ok=True)
    listing: dict[str, dict[str, dict[str, int]]] = {}
    for split, groups in splits.items():
        listing[split] = {}
        for name, tokens in groups.items():
            np.save(directory / f"{split}.{name}.npy", np.asarray(tokens, dtype=np.uint16))
            listing[split][name] = {"tokens": len(tokens), "bytes": len(tokens), "documents": 1}
    write_json(
        directory / "manifest.json",
        {"vocab_size": vocab_size, "dtype": "uint16", "splits": listing},
    )
    return directory


def corpus(root: Path) -> dict[str, Path]:
    """The inputs of pretraining: three files in two groups to train on, one held out."""
    tokenizer = make_tokenizer()
    tokenizer.save(root / "tokenizer")
    ids = {name: np.array(tokenizer.encode(text)) for name, text in TEXTS.items()}
    train = {
        "packages": ids["argparse"][:8000],
        "stdlib": np.concatenate([ids["heapq"], ids["textwrap"]]),
    }
    tokens = write_tokens(root / "tokens", {"train": train, "heldout": {"stdlib": ids["shlex"]}})
    return {"tokens": tokens, "tokenizer": root / "tokenizer"}


def random_network(seed: int = 0, **shape) -> Transformer:
    """Every parameter random, norms and residual writers too, so that no part of the network is idle."""
    network = Transformer(ModelConfig(**{"vocab_size": VOCAB, **SHAPE, **shape}))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator_for(seed, name))
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else noise * 0.15)
    return network


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by name, taken off the network."""
    found = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        found[name], parameter.grad = parameter.grad, None
    return found
