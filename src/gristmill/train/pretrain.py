"""The pretraining stage: next-token prediction over the token shards, from nothing or from a base model."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.files import listing_hash, read_json, write_json
from gristmill.formats import Model, resolve, save_hf
from gristmill.model import ModelConfig, Transformer, initialize
from gristmill.stage import Progress, Result, quiet
from gristmill.tokenizer import Tokenizer
from gristmill.train import checkpoint, wiring
from gristmill.train.optim import OptimConfig
from gristmill.train.trainer import train
from gristmill.train.windows import Windows


class PretrainConfig(OptimConfig):
    """Shape, budget and optimizer of a base model. With `base`, its shape is the base model's."""

    base: str = ""  # a model to continue from
    num_layers: int = 4
    hidden_size: int = 128
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 352
    qk_norm: bool = True
    tie_embeddings: bool = False
    rope_theta: float = 1_000_000.0
    max_seq_len: int = 1024
    warm_start: Literal["induction", "none"] = "induction"  # how the weights begin (wiring.py)
    warm_start_iterations: PositiveInt = 24
    tokens: PositiveInt = 1_000_000  # training tokens, rounded to whole batches
    batch_tokens: PositiveInt = 1024
    context: PositiveInt = 256  # tokens a training window
    weights: dict[str, float] = Field(default_factory=dict)  # group -> share of rows; {} = by size
    evaluations: NonNegativeInt = 5
    evaluation_tokens: PositiveInt = 16_384
    seed: int = 0


class NextToken:
    """Cross-entropy of the next token; metrics in nats a token and bits a byte."""

    counts = "tokens"

    def __init__(
        self,
        windows: Windows,
        heldout: Windows | None,
        bytes_of_token: Tensor,
        batch_rows: int,
        evaluation_rows: int,
    ) -> None:
        self.windows, self.heldout = windows, heldout
        self.bytes_of_token = bytes_of_token
        self.batch_rows, self.evaluation_rows = batch_rows, evaluation_rows

    def batch(self, step: int) -> Tensor:
        """Int64 [rows, context + 1]."""
        return torch.from_numpy(self.windows.rows(step * self.batch_rows, self.batch_rows))

    def loss(
        self, network: Transformer, batch: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, int, dict[str, float]]:
        inputs, targets = batch[:, :-1], batch[:, 1:].reshape(-1)
        logits = network(inputs, dtype=dtype)
        loss = F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
        return loss, targets.numel(), {"bytes": self.bytes_of_token[targets].sum().item()}

    def describe(self, sums: dict[str, float], targets: int) -> dict[str, float]:
        return {
            "loss": sums["loss"] / targets,
            "bits_per_byte": sums["loss"] / math.log(2) / max(1.0, sums["bytes"]),
        }

    @torch.inference_mode()
    def evaluate(self, network: Transformer, dtype: torch.dtype) -> dict[str, float]:
        """The same rows every time: the first of the held-out stream."""
        if self.heldout is None:
            return {}
        rows = torch.from_numpy(self.heldout.rows(0, self.evaluation_rows))
        loss = bytes_ = 0.0
        for batch in rows.split(16):
            value, _, extra = self.loss(network, batch, dtype)
            loss += value.item()
            bytes_ += extra["bytes"]
        targets = rows[:, 1:].numel()
        return {
            "heldout_loss": loss / targets,
            "heldout_bits_per_byte": loss / math.log(2) / max(1.0, bytes_),
        }


def check(config: PretrainConfig) -> None:
    """Raises RequestError for settings that cannot work together, before anything runs."""
    if config.batch_tokens % config.context:
        raise RequestError(
            f"pretrain.batch_tokens ({config.batch_tokens}) must be a multiple of pretrain.context "
            f"({config.context})"
        )
    if config.base:
        resolve(config.base)
    else:
        if config.context > config.max_seq_len:
            raise RequestError(
                f"pretrain.context ({config.context}) exceeds pretrain.max_seq_len "
                f"({config.max_seq_len})"
            )
        shape = _shape(config, vocab_size=1)
        if config.warm_start == "induction":
            wiring.check(shape)
    if config.tokens < config.batch_tokens:
        raise RequestError(
            f"pretrain.tokens ({config.tokens}) is less than one batch ({config.batch_tokens})"
        )


def source_fingerprint(config: PretrainConfig) -> str:
    """Changes when the base model's files do. Raises RequestError when it is not there."""
    return listing_hash(resolve(config.base)) if config.base else ""


def run(
    config: PretrainConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """inputs: tokens, tokenizer. Output: model, an HF directory. Resumes from its own checkpoints."""
    check(config)
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    windows = Windows(inputs["tokens"], "train", config.context, config.weights, config.seed)
    try:
        heldout = Windows(inputs["tokens"], "heldout", config.context, {}, config.seed)
    except RequestError:  # a small folder may hold out less than one window
        heldout = None
    network, start = _start(config, tokenizer, windows, out_dir)
    if (
        config.base or config.warm_start == "none"
    ):  # no heads were wired that a lower rate would keep
        config = config.model_copy(update={"lr_copying": 1.0})
    objective = NextToken(
        windows,
        heldout,
        bytes_of_token(tokenizer),
        config.batch_tokens // config.context,
        max(1, config.evaluation_tokens // config.context),
    )
    steps = max(1, config.tokens // config.batch_tokens)
    rows = train(
        network,
        objective,
        config,
        steps=steps,
        out_dir=out_dir,
        progress=progress,
        evaluations=config.evaluations,
    )
    model = out_dir / "model"
    save_hf(network, model, tokenizer)
    metrics: dict[str, Any] = {
        "shape": asdict(network.config),
        "parameters": network.config.num_parameters,
        "steps": steps,
        "tokens": steps * config.batch_tokens,
        "epochs": steps * config.batch_tokens / windows.total,
        **start,
        "history": rows,
    }
    if heldout is not None:
        metrics["heldout_bits_per_byte"] = rows[-1].get("heldout_bits_per_byte")
    return Result({"model": model}, metrics)


def bytes_of_token(tokenizer: Tokenizer) -> Tensor:
    """UTF-8 bytes that each token stands for, float32 [V]; special tokens stand for none."""
    return torch.tensor(
        [
            0.0 if tokenizer.is_special(i) else float(len(tokenizer.token_bytes(i)))
            for i in range(tokenizer.vocab_size)
        ]
    )


def _start(
    config: PretrainConfig, tokenizer: Tokenizer, windows: Windows, out_dir: Path
) -> tuple[Transformer, dict[str, Any]]:
    """The network at step 0 and what to report of it. A run that resumes overwrites it from its checkpoint."""
    if config.base:
        base = Model.load(config.base, widen=True)
        if base.tokenizer.vocab_size != tokenizer.vocab_size:
            raise RequestError(
                f"{config.base} has {base.tokenizer.vocab_size} tokens and the corpus was encoded with "
                f"{tokenizer.vocab_size}: set tokenizer.base to the same model"
            )
        return base.network, {"base": config.base}
    network = initialize(Transformer(_shape(config, tokenizer.vocab_size)), config.seed)
    if config.warm_start == "none":
        return network, {}
    kept = out_dir / "warm_start.json"  # so that a run that resumes reports the same metrics
    if kept.is_file() and checkpoint.newest(out_dir / "checkpoints") is not None:
        return network, read_json(kept)
    # The table may use every token the run could see: counting is cheap where training is not.
    tokens = np.concatenate([np.asarray(group) for group in windows.tokens])
    loss = wiring.warm_start(network, tokens, config.seed, config.warm_start_iterations)
    write_json(kept, {"bigram_loss": loss})
    return network, {"bigram_loss": loss}


def _shape(config: PretrainConfig, vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        max_seq_len=config.max_seq_len,
        family="qwen3" if config.qk_norm else "llama",
        rope_theta=config.rope_theta,
        qk_norm=config.qk_norm,
        tie_embeddings=config.tie_embeddings,
    )
