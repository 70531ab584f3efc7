"""The one dial: a size derives depth, width, vocabulary, batch, tokens, learning rates and amounts of data.

A size is a number of parameters ("4M", "124M", "1.5B") or a name: "tiny" proves that the whole line works in about
a minute, "small" is the shipped recipe's ten minutes on two laptop cores. "4M:8x2" puts 8 experts in the place of every
MLP and sends each token to 2; these 2 together are as large as the MLP, so a token costs what it does at 4M.
"""

from __future__ import annotations

import re
from typing import Any

from gristmill.errors import RequestError

NAMED = {"tiny": 320_000, "small": 4_300_000}
SMALLEST, LARGEST = 300_000, 100_000_000_000
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}

Settings = dict[str, dict[str, Any]]


def parameters_of(size: str) -> int:
    """The number of parameters a size asks for. Raises RequestError when it is no size or out of range."""
    if size in NAMED:
        return NAMED[size]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMB]?)", size.strip(), re.IGNORECASE)
    if not match:
        raise RequestError(
            f'size "{size}" is neither a number of parameters such as "4M" or "1.5B" nor one of '
            f"{', '.join(NAMED)}"
        )
    count = round(float(match[1]) * _UNITS[match[2].upper()])
    if not SMALLEST <= count <= LARGEST:
        raise RequestError(
            f'size "{size}" is out of range: from 0.3M to 100B parameters '
            "(the shape and the budget are only known to make sense between)"
        )
    return count


def derive(size: str) -> Settings:
    """stage -> key -> value for everything that follows from the size."""
    size, colon, experts = size.partition(":")
    wanted = parameters_of(size)
    shape = _shape(wanted)
    vocab_size = shape.pop("vocab_size")
    tokens = _tokens(wanted)
    # Small batches win while there are few steps; then the batch grows with tokens^0.383 (arXiv 2505.13738).
    batch_tokens = 1024 * max(1, round((tokens / 4e6) ** 0.383))
    warm = vocab_size <= 16_384  # wiring.check
    settings: Settings = {
        "tokenizer": {"vocab_size": vocab_size},
        "pretrain": {
            **shape,
            "tie_embeddings": vocab_size > 16_384,
            "warm_start": "induction" if warm else "none",
            "tokens": tokens,
            "batch_tokens": batch_tokens,
            "context": min(512, batch_tokens),
            "lr_peak": 0.015,
            "lr_embedding_peak": 0.001,
            "lr_copying": 0.3 if warm else 1.0,
        },
        "questions": {"max_facts": 500, "phrasings": 2, "grounded_share": 0.45},
        "baselines": {"heldout_bytes": 240_000},  # what every model is measured on: seconds a model
        "evaluate": {"context": min(512, batch_tokens)},
        "sft": {
            "epochs": 1.5,
            "lr_peak": 0.01,
            "lr_embedding_peak": 0.001,
            "lr_copying": 0.1 if warm else 1.0,
        },
        "dpo": {
            "max_pairs": 640,
            "own_samples": 128,
            "epochs": 2.0,
            "lr_peak": 0.006,
            "nll": 0.5,
            "evaluations": 2,
            "lr_copying": 0.1 if warm else 1.0,
        },
    }
    if colon:
        settings["pretrain"] |= _experts(
            f"{size}:{experts}", experts, settings["pretrain"]["intermediate_size"]
        )
    if size == "tiny":
        settings |= _tiny(settings)
    return settings


def _experts(size: str, form: str, intermediate_size: int) -> dict[str, Any]:
    """What "8x2" after a size says: how many experts, and how many of them a token asks."""
    match = re.fullmatch(r"(\d+)x(\d+)", form)
    many, asked = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < asked <= many:
        why = f"a token cannot ask {asked} of {many} experts; " if match else ""
        raise RequestError(
            f'size "{size}": {why}write experts as "8x2", 8 in all of which each token asks 2'
        )
    # Multiples of 8 keep the products of small experts fast.
    each = max(8, round(intermediate_size / asked / 8) * 8)
    return {"num_experts": many, "experts_per_token": asked, "expert_size": each}


def _shape(wanted: int) -> dict[str, Any]:
    """The shape of this family that comes closest to `wanted` parameters."""
    vocab_size = 1024 if wanted < 10**6 else 8192 if wanted < 60e6 else 16_384
    if wanted >= 600e6:
        vocab_size = 32_768
    shapes = [_of_width(width, vocab_size) for width in range(64, 16_385, 64)]
    return min(shapes, key=lambda shape: abs(_count(shape) - wanted))


def _of_width(width: int, vocab_size: int) -> dict[str, Any]:
    head_dim = 32 if width < 128 else 64 if width < 1024 else 128
    heads = max(2, width // head_dim)
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_layers": 2 if width < 128 else max(3, round(width / 64)),
        "num_heads": heads,
        "num_kv_heads": max(2, heads // 4) if heads % 4 == 0 else 1,
        "head_dim": head_dim,
        "intermediate_size": 2 * width if width < 512 else 64 * round(width * 8 / 3 / 64),
        "max_seq_len": 1024 if width < 512 else 2048 if width < 1024 else 4096,
    }


def _count(shape: dict[str, Any]) -> int:
    width, head_dim = shape["hidden_size"], shape["head_dim"]
    attention = 2 * width * head_dim * (shape["num_heads"] + shape["num_kv_heads"])
    embeddings = shape["vocab_size"] * width * (2 if shape["vocab_size"] <= 16_384 else 1)
    return embeddings + shape["num_layers"] * (attention + 3 * width * shape["intermediate_size"])


def _tokens(parameters: int) -> int:
    """Chinchilla's 20 tokens a parameter from 40M on; below, fewer, so that the small end ends in minutes."""
    per_parameter = min(20.0, max(0.21, (parameters / 9.8e6) ** 2))
    return round(parameters * per_parameter / 1024) * 1024


def _tiny(settings: Settings) -> Settings:
    return {
        "data": {"max_bytes": 1_500_000, "per_package_bytes": 100_000},
        "pretrain": settings["pretrain"]
        | {"tokens": 65_536, "context": 256, "evaluations": 2, "evaluation_tokens": 4096},
        "questions": {
            "max_facts": 100,
            "heldout_facts": 60,
            "phrasings": 1,
            "choices_seen": 40,
            "choices_heldout": 40,
        },
        "sft": settings["sft"] | {"epochs": 1.0, "evaluations": 1},
        "dpo": settings["dpo"] | {"max_pairs": 64, "own_samples": 16, "evaluations": 1},
        "baselines": {"heldout_bytes": 60_000},
        "evaluate": {"context": 256, "choices": 40, "pairs": 40, "answer_tokens": 24},
    }
