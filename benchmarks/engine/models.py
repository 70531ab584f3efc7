"""The models: random weights of a seed, in the shapes that the goals name, written once for all contestants."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gristmill.formats import Model
    from gristmill.model import ModelConfig, Transformer

CORPUS_BYTES = 8_000_000


def shape(name: str) -> ModelConfig:
    """ "551M", "134M" or "10M": what the goals were set for."""
    sizes = {"551M": (1536, 16, 32_000), "134M": (768, 12, 32_000), "10M": (384, 6, 4096)}
    return llama(*sizes[name])


def llama(hidden_size: int, layers: int, vocab_size: int) -> ModelConfig:
    """As all contestants know it."""
    from gristmill.model import ModelConfig

    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=layers,
        num_heads=hidden_size // 64,
        num_kv_heads=hidden_size // 64,
        head_dim=64,
        intermediate_size=hidden_size * 8 // 3 // 128 * 128,
        max_seq_len=2048,
        qk_norm=False,
        tie_embeddings=False,
    )


def random_network(config: ModelConfig, seed: int) -> Transformer:
    """As at the start of training, but that no layer is the identity: each adds to the stream."""
    import torch

    from gristmill.model import Transformer, generator_for, initialize

    network = initialize(Transformer(config), seed)
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if key.endswith(("o_proj.weight", "down_proj.weight")):
                drawn = torch.randn(weight.shape, generator=generator_for(seed, key))
                weight.copy_(drawn * (weight.shape[1] * 2 * config.num_layers) ** -0.5)
    return network


def random_model(name: str) -> Model:
    from gristmill.formats import Model
    from gristmill.tokenizer import train_bpe

    config = shape(name)
    tokenizer = train_bpe(python_sources(CORPUS_BYTES), config.vocab_size)
    return Model(random_network(config, seed=0), tokenizer)


def written(place: Path, name: str) -> Path:
    """A Hugging Face directory of float32 weights in `place`, written once."""
    path = place / name
    if not path.exists():
        random_model(name).save(path)
    return path


def written_gguf(place: Path, name: str, quant: str) -> Path:
    from gristmill.formats import Model

    path = place / f"{name}-{quant}.gguf"
    if not path.exists():
        Model.load(written(place, name), dtype="auto").save(path, format="gguf", quant=quant)
    return path


def weight_bytes_per_token(config: ModelConfig, itemsize: int) -> int:
    """What one decoded token reads of the weights: all but the embedding's other rows."""
    return (config.num_parameters - config.vocab_size * config.hidden_size) * itemsize


def cache_bytes_per_token(config: ModelConfig, position: float, itemsize: int) -> float:
    """What attention reads of the keys and values of `position` earlier tokens."""
    return position * config.num_layers * 2 * config.num_kv_heads * config.head_dim * itemsize


def random_prompt(draw: Random, length: int, vocab_size: int) -> list[int]:
    """Ordinary tokens: neither single bytes, which come first, nor control tokens, which come last."""
    return [draw.randrange(300, vocab_size - 300) for _ in range(length)]


def python_sources(size: int) -> Iterator[str]:
    """Real text that every machine has: the standard library's own modules, about `size` characters of them."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        yield text
        size -= len(text)
        if size <= 0:
            return
