"""A layout proved before anybody pays for it: the same run on one process and on the layout's, step beside step.

Batches and first weights do not depend on the layout, so two right runs differ by rounding alone: about 1e-7 of the
loss, growing slowly. What is wrong shows by where it begins: in the first loss the first weights or the data, in the
first norm gradients or their normalization, later the optimizer or the clipping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from gristmill.files import read_jsonl, write_json
from gristmill.formats import Model, load_config, resolve
from gristmill.model.init import generator_for
from gristmill.stage import Progress, quiet
from gristmill.tokenizer import train_bpe
from gristmill.train import checkpoint
from gristmill.train.parallel import launch
from gristmill.train.parallel.layout import Layout
from gristmill.train.pretrain import PretrainConfig

TOLERANCE = 1e-5
# Of the norm of a single parameter, or of its gradient, after some steps. A gradient that is hardly there, or one that
# Muon scales away, is wrong without a trace in loss and norm, and is found by this alone.
NAMED_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Compared:
    """A step's loss (nats a token) and gradient norm: of one process, and the layout's relative difference."""

    step: int
    loss: float
    grad_norm: float
    loss_difference: float
    grad_norm_difference: float

    @property
    def equal(self) -> bool:
        """NaN equals nothing."""
        both = (self.loss_difference, self.grad_norm_difference)
        return all(abs(difference) <= TOLERANCE for difference in both)


def prove(
    config: PretrainConfig,
    inputs: dict[str, Path],
    out_dir: Path,
    steps: int = 20,
    progress: Progress = quiet,
) -> list[Compared]:
    """Run `steps` steps of `config` in fp32 under its layout and alone, and compare them. Leaves both in `out_dir`."""
    config = config.model_copy(
        update={
            "tokens": steps * config.batch_tokens,
            "compute_dtype": "float32",
            "fp8": False,
            "evaluations": 0,
            "warmup_steps": min(config.warmup_steps, steps // 4),
            "samples": (),
            "log_to": (),
            "measure_noise": False,
        }
    )
    alone = config.model_copy(update={"layout": Layout()})
    rows: list[list[dict[str, Any]]] = []
    for name, given in (("alone", alone), ("layout", config)):
        place = out_dir / name
        launch.run(given, inputs, place, progress, log_every=1)
        rows.append(read_jsonl(place / "metrics.jsonl"))
    return compare(*rows)


def compare(alone: list[dict[str, Any]], layout: list[dict[str, Any]]) -> list[Compared]:
    """Rows of metrics of the same steps: one process's and the layout's."""
    return [
        Compared(
            one["step"],
            one["loss"],
            one["grad_norm"],
            _relative(many["loss"], one["loss"]),
            _relative(many["grad_norm"], one["grad_norm"]),
        )
        for one, many in zip(alone, layout, strict=True)
    ]


def _relative(value: float, true: float) -> float:
    if value == true:
        return 0.0
    return value / true - 1 if true else math.inf


def first_difference(rows: list[Compared]) -> Compared | None:
    return next((row for row in rows if not row.equal), None)


def meaning(row: Compared) -> str:
    """What it means that two runs differ for the first time in this row."""
    loss_differs = not abs(row.loss_difference) <= TOLERANCE
    if row.step == 1 and loss_differs:
        return "the first weights, the data or the forward pass: nothing was learned yet"
    factor = 1 + row.grad_norm_difference
    times = max(factor, 1 / factor) if factor > 0 else math.nan
    if row.step == 1 and times > 1.5 and abs(times - round(times)) < 0.01 * times:
        way = "large" if factor > 1 else "small"
        return f"the normalization of gradients: they are {round(times)} times too {way}"
    if row.step <= 2 and not loss_differs:
        # What is behind projections that begin at zero has its first gradient in the second step.
        return "gradients: the backward pass, or a sum over processes that is missing or made twice"
    if row.step == 2:
        return "what the first update did: gradients of single parameters, Muon of parts, clipping"
    return "the optimizer (moments, Muon of parts instead of wholes), clipping, or rounding that piles up"


@torch.no_grad()
def weights_differ(out_dir: Path) -> dict[str, float]:
    """After `prove`: parameter -> |difference| / |its value alone|, the largest first.

    The layout's are those of its last checkpoint, put together on one process; the other's never left memory.
    """
    alone, layout = (Model.load(out_dir / name / "model").network for name in ("alone", "layout"))
    made = dict(layout.named_parameters())
    found = {name: _distance(made[name], value) for name, value in alone.named_parameters()}
    return _sorted(found)


def gradients_differ(out_dir: Path) -> dict[str, float]:
    """After `prove`: parameter -> |difference| / |gradient alone|, the largest first.

    Gradients are taken from the optimizer's first moments, a running mean of them: where losses differ, prove only as
    far as the first step that does, or everything will be different.
    """
    alone, layout = (_moments(out_dir / name / "checkpoints") for name in ("alone", "layout"))
    return _sorted({name: _distance(layout[name], alone[name]) for name in alone})


def _moments(checkpoints: Path) -> dict[str, Tensor]:
    found = checkpoint.newest(checkpoints)
    assert found is not None
    dcp_to_torch_save(found, checkpoints / "whole.pt")
    state = torch.load(checkpoints / "whole.pt", weights_only=False)["optimizer"]
    slots = (".exp_avg", ".momentum")
    return {name.rpartition(".")[0]: t for name, t in state.items() if name.endswith(slots)}


def _distance(value: Tensor, true: Tensor) -> float:
    away, size = float((value.double() - true.double()).norm()), float(true.double().norm())
    return away / size if size else (math.inf if away else 0.0)


def _sorted(found: dict[str, float]) -> dict[str, float]:
    """Largest first, and NaN before all."""
    return dict(
        sorted(found.items(), key=lambda i: i[1] if i[1] == i[1] else math.inf, reverse=True)
    )


def shrunk(config: PretrainConfig) -> PretrainConfig:
    """The same layout and kind of network, small enough for a laptop: what the layout must divide stays divisible.

    Of a base model the shape is taken, as far as a pretraining's settings can tell it.
    """
    layout = config.layout
    if config.base:
        config = _of_base(config)
    kv_heads = layout.tp if layout.tp > 1 else min(2, config.num_kv_heads)
    heads = kv_heads * min(2, config.num_heads // config.num_kv_heads)
    micro_batches = min(config.micro_batches, 2 * layout.pp if layout.pp > 1 else 2)
    rows = layout.rows * micro_batches * (2 if layout.pp == 1 else 1)
    unit = 2 * layout.cp * layout.tp
    context = unit * math.ceil(32 / unit)
    experts_per_token = min(2, config.experts_per_token)
    experts = math.ceil(min(config.num_experts, 8) / layout.ep) * layout.ep
    return config.model_copy(
        update={
            "base": "",
            "warm_start": "none",
            "num_layers": max(2, layout.stages),
            "hidden_size": 32 * max(2, layout.tp),
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": 16,
            "intermediate_size": 32 * max(2, layout.tp),
            "num_experts": experts,
            "experts_per_token": experts_per_token,
            "expert_size": 32,
            "context": context,
            "max_seq_len": max(64, context),
            "micro_batches": micro_batches,
            "batch_tokens": rows * context,
        }
    )


def _of_base(config: PretrainConfig) -> PretrainConfig:
    shape = load_config(resolve(config.base))
    same = ("num_layers", "num_heads", "num_kv_heads", "qk_norm", "tie_embeddings", "rope_theta")
    update = {name: getattr(shape, name) for name in same}
    if shape.moe is not None:
        update["num_experts"] = shape.moe.num_experts
        update["experts_per_token"] = shape.moe.experts_per_token
    return config.model_copy(update=update)


def made_up_corpus(
    directory: Path, vocab_size: int, tokens: int, documents: float = 24.0
) -> dict[str, Path]:
    """Inputs of pretraining, without sense and always the same: two groups of documents, `documents` tokens long on
    average, `tokens` in all."""
    tokenizer = train_bpe(iter(["a made-up corpus"]), vocab_size)
    tokenizer.save(directory / "tokenizer")
    [start] = tokenizer.document_start
    groups, held = {"one": tokens * 3 // 4, "two": tokens - tokens * 3 // 4}, {}
    (directory / "tokens").mkdir(parents=True, exist_ok=True)
    for group, size in groups.items():
        drawn = torch.rand(size, generator=generator_for(0, group)).numpy()
        ids = (256 * drawn**3).astype(np.uint32)  # some tokens are much more common than others
        begins = torch.rand(size, generator=generator_for(1, group)).numpy() < 1 / documents
        begins[0] = True
        ids[begins] = start
        np.save(directory / "tokens" / f"train.{group}.npy", ids)
        held[group] = {"tokens": size, "bytes": size, "documents": int(begins.sum())}
    manifest = {"vocab_size": vocab_size, "dtype": "uint32", "splits": {"train": held}}
    write_json(directory / "tokens" / "manifest.json", manifest)
    return {"tokens": directory / "tokens", "tokenizer": directory / "tokenizer"}
