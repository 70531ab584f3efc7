"""The pretraining stage: next-token prediction over the token shards, from nothing or from a base model."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from gristmill.errors import RequestError, WorkError
from gristmill.files import listing_hash, read_json, write_json
from gristmill.formats import Model, load_config, resolve, save_hf
from gristmill.model import ModelConfig, MoEConfig, Transformer, initialize, meta_network
from gristmill.model.init import narrow_head
from gristmill.stage import Progress, Result, quiet
from gristmill.tokenizer import Tokenizer
from gristmill.train import checkpoint, fp8, loggers, shards, wiring
from gristmill.train.compute import resolve_dtype
from gristmill.train.loggers import LogTo
from gristmill.train.next_token import NextToken, bytes_of_token
from gristmill.train.optim import OptimConfig
from gristmill.train.parallel import chosen, launch, layout, sharding
from gristmill.train.parallel.layout import Layout, Mesh
from gristmill.train.parallel.sharding import Recompute
from gristmill.train.parallel.spread import Spread
from gristmill.train.schedule import for_width
from gristmill.train.trainer import Diverged, train
from gristmill.train.watch import Watch
from gristmill.train.windows import Windows


class PretrainConfig(OptimConfig):
    """Shape, budget and optimizer of a base model. With `base`, its shape is the base model's."""

    HOW = OptimConfig.HOW | {"layout", "recompute", "compile_blocks", "log_to"}

    base: str = ""  # a model to continue from
    num_layers: int = 4
    hidden_size: int = 128
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 352
    num_experts: NonNegativeInt = 0  # in place of every MLP; 0: none
    experts_per_token: PositiveInt = 2
    expert_size: PositiveInt = 128  # intermediate size of each
    balance_loss: NonNegativeFloat = 0.01  # weight of the unevenness of their loads (balance.py)
    qk_norm: bool = True
    tie_embeddings: bool = False
    rope_theta: float = 1_000_000.0
    max_seq_len: int = 1024
    warm_start: Literal["induction", "none"] = "induction"  # how the weights begin (wiring.py)
    warm_start_iterations: PositiveInt = 24
    tokens: PositiveInt = 1_000_000  # training tokens, rounded to whole batches
    batch_tokens: PositiveInt = 1024
    context: int = Field(default=256, ge=2)  # tokens a training window
    weights: dict[str, float] = Field(default_factory=dict)  # group -> share of rows; {} = by size
    # "apart": a token sees its own document alone, not those before it in the window.
    documents: Literal["together", "apart"] = "together"
    z_loss: NonNegativeFloat = (
        0.0  # weight of mean logsumexp², which keeps logits from drifting (PaLM)
    )
    evaluations: NonNegativeInt = 5
    evaluation_tokens: PositiveInt = 16_384
    samples: tuple[str, ...] = ()  # prompts that are continued at every evaluation
    # The width at which the rates were tuned: they are translated to hidden_size (schedule.for_width).
    width_base: PositiveInt | Literal["off"] = "off"
    measure_noise: bool = False  # of the gradient, from its micro-batches (noise.py)
    log_to: tuple[LogTo, ...] = ()  # loggers.py
    layout: Layout = Layout()  # over how many processes, and along what
    recompute: Recompute = "none"  # of activations in the backward pass, to save memory
    fp8: bool = False  # products of the blocks in 8-bit floats (fp8.py); for Hopper and later
    compile_blocks: bool = False  # by torch.compile
    seed: int = 0


def check(config: PretrainConfig) -> None:
    """Raises RequestError for settings that cannot work together, before anything runs."""
    if config.batch_tokens % config.context:
        raise RequestError(
            f"pretrain.batch_tokens ({config.batch_tokens}) must be a multiple of pretrain.context "
            f"({config.context})"
        )
    rows = config.batch_tokens // config.context
    if rows % config.micro_batches:
        raise RequestError(
            f"pretrain.micro_batches ({config.micro_batches}) must divide the {rows} rows of a batch "
            "(batch_tokens / context)"
        )
    if config.base:
        resolve(config.base)
    else:
        if config.context > config.max_seq_len:
            raise RequestError(
                f"pretrain.context ({config.context}) exceeds pretrain.max_seq_len "
                f"({config.max_seq_len})"
            )
        shape = shape_of(config, vocab_size=config.layout.tp)
        if config.warm_start == "induction":
            wiring.check(shape)
        _check_layout(config, shape)
    loggers.check(config.log_to)
    if config.samples and config.layout.world > 1:
        raise RequestError(
            "pretrain.samples are made by one process: leave them out, or leave pretrain.layout out"
        )
    if config.measure_noise and (config.micro_batches < 2 or config.layout.world > 1):
        raise RequestError(
            "pretrain.measure_noise compares the micro-batches of a single process: set "
            "pretrain.micro_batches to 2 or more, and leave pretrain.layout out"
        )
    if config.width_base != "off" and not config.base and config.warm_start != "none":
        raise RequestError(
            "pretrain.width_base needs the plain beginning that its rule is made for: set "
            'pretrain.warm_start = "none"'
        )
    if config.tokens < config.batch_tokens:
        raise RequestError(
            f"pretrain.tokens ({config.tokens}) is less than one batch ({config.batch_tokens})"
        )


def _check_layout(config: PretrainConfig, shape: ModelConfig) -> None:
    rows = config.batch_tokens // config.context // config.micro_batches
    layout.check(
        config.layout,
        shape,
        batch_rows=rows,
        context=config.context,
        micro_batches=config.micro_batches,
    )
    if config.fp8 and config.layout.tp > 1:
        raise RequestError("pretrain.fp8 does not go with layout.tp: set layout.tp = 1")
    if config.layout.pp > 1 and shape.moe and config.balance_loss:
        raise RequestError(
            "a pipeline does not carry the balance of experts from stage to stage: set pretrain.balance_loss = 0, "
            "or layout.pp = 1"
        )
    if config.layout.pp > 1 and config.layout.schedule == "zero-bubble":
        # It runs the backward pass in two parts, which neither of these survives.
        for name, chosen in (
            ("recompute", config.recompute == "selective"),
            ("compile_blocks", config.compile_blocks),
        ):
            if chosen:
                raise RequestError(
                    f'pretrain.{name} does not go with layout.schedule = "zero-bubble"; take "interleaved-1f1b"'
                )


def steps_of(config: PretrainConfig) -> int:
    return max(1, config.tokens // config.batch_tokens)


def source_fingerprint(config: PretrainConfig) -> str:
    """Changes when the base model's files do. Raises RequestError when it is not there."""
    return listing_hash(resolve(config.base)) if config.base else ""


def run(
    config: PretrainConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """inputs: tokens, tokenizer. Output: model, an HF directory. Resumes from its own checkpoints.

    A layout of several processes is started here, on this machine, unless this process is already one of them
    (torchrun, SLURM): then all call this, and the first writes.
    """
    check(config)
    found: list[str] = []
    if not launch.joined() or "0" in (os.environ.get("RANK"), os.environ.get("SLURM_PROCID")):
        found = shards.look_over(
            inputs,
            config.context,
            config.weights,
            steps_of(config) * config.batch_tokens,
            load_config(config.base).vocab_size if config.base else None,
        )
    for problem in found:
        warnings.warn(problem, stacklevel=2)
    if config.layout.auto:
        vocab_size = Tokenizer.load(inputs["tokenizer"]).vocab_size
        shape = load_config(config.base) if config.base else shape_of(config, vocab_size)
        config = config.model_copy(update={"layout": chosen.layout_for(config, shape)})
    if config.layout.world > 1 and not launch.joined():
        metrics = launch.run(config, inputs, out_dir, progress)
    else:
        with launch.processes(config.layout) as mesh:
            metrics = work(config, inputs, out_dir, mesh, progress)
    if found:
        metrics["warnings"] = found
    return Result({"model": out_dir / "model"}, metrics)


class Ready(NamedTuple):
    """Everything a training needs. config: with the rates that this shape is trained at. start: metrics of how the
    weights began."""

    spread: Spread
    objective: NextToken
    config: PretrainConfig
    tokenizer: Tokenizer
    start: dict[str, Any]


def prepare(
    config: PretrainConfig, inputs: dict[str, Path], out_dir: Path, mesh: Mesh | None
) -> Ready:
    """The network at step 0 on this process, and what it is trained for."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    windows = Windows(inputs["tokens"], "train", config.context, config.weights, config.seed)
    try:
        heldout = Windows(inputs["tokens"], "heldout", config.context, {}, config.seed)
    except RequestError:  # a small folder may hold out less than one window
        heldout = None
    dtype = launch.agreed(mesh, lambda: resolve_dtype(config.compute_dtype, out_dir))
    device = mesh.device if mesh else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, start = _start(config, tokenizer, windows, out_dir, mesh)
    shape = network.config
    _check_layout(config, shape)
    if config.context > shape.max_seq_len:
        raise RequestError(
            f"pretrain.context ({config.context}) exceeds the {shape.max_seq_len} tokens of {config.base}"
        )
    chosen.check_memory(config, shape, device)
    if config.base or config.warm_start == "none":
        # no heads were wired that a lower rate would keep
        config = config.model_copy(update={"lr_copying": 1.0})
    if config.width_base != "off":
        factors = for_width(config.width_base, shape.hidden_size, config.optimizer)
        scaled = {name: getattr(config, name) * factor for name, factor in factors.items()}
        config = config.model_copy(update=scaled)
    groups = heldout.groups if heldout is not None and len(heldout.groups) > 1 else []
    document_start = None
    if config.documents == "apart":
        if not tokenizer.document_start:
            raise RequestError(
                "the tokenizer has no token that begins a document, by which documents could be told apart: "
                'set pretrain.documents = "together"'
            )
        document_start = tokenizer.document_start[0]
    objective = NextToken(
        windows,
        heldout,
        bytes_of_token(tokenizer),
        config.batch_tokens // config.context,
        max(1, config.evaluation_tokens // config.context),
        heldout_groups={
            group: Windows(inputs["tokens"], "heldout", config.context, {group: 1.0}, config.seed)
            for group in groups
        },
        document_start=document_start,
        z_loss=config.z_loss,
        balance_loss=config.balance_loss,
        ring=mesh.group("cp") if mesh and mesh.layout.cp > 1 else None,
    )
    if config.fp8:
        fp8.check_device(device)
        fp8.apply(network)
    unfilled = any(parameter.is_meta for parameter in network.parameters())
    parts = sharding.apply(
        network if unfilled else network.to(device),
        mesh,
        dtype=dtype,
        recompute=config.recompute,
        compile=config.compile_blocks,
    )
    if unfilled:
        sharding.initialize(parts, config.seed, device)
    spread = Spread(parts, mesh, dtype=dtype, micro_batches=config.micro_batches)
    if unfilled and config.width_base != "off":
        values = ((leaf.name, leaf.local) for leaf in spread.leaves)
        narrow_head(values, config.width_base / shape.hidden_size)
    return Ready(spread, objective, config, tokenizer, start)


def work(
    config: PretrainConfig,
    inputs: dict[str, Path],
    out_dir: Path,
    mesh: Mesh | None,
    progress: Progress = quiet,
    log_every: int = 10,
) -> dict[str, Any]:
    """What every process of a layout does. Returns the stage's metrics; the first process leaves the model."""
    given = config
    spread, objective, config, tokenizer, start = prepare(config, inputs, out_dir, mesh)
    steps, shape = steps_of(config), spread.network.config
    watch = Watch(
        out_dir,
        context=config.context,
        log_to=config.log_to,
        settings=config.model_dump(mode="json"),
        prompts=config.samples,
        tokenizer=tokenizer,
        measure_noise=config.measure_noise,
    )
    try:
        rows = train(
            spread,
            objective,
            config,
            steps=steps,
            out_dir=out_dir,
            progress=progress,
            log_every=log_every,
            evaluations=config.evaluations,
            watch=watch,
        )
    except Diverged as error:
        if mesh is not None:  # others of the processes may still be at work
            raise
        from gristmill.train.doctor import at_once  # which imports this module

        found = at_once(out_dir, given, inputs, shape.num_parameters)
        raise Diverged(f"{error}{found}") from error
    network = spread.network
    if spread.first:
        if mesh is not None:  # the last checkpoint holds all of it, whatever the layout
            network = _whole_network(shape, out_dir / "checkpoints", config.ema_decay > 0, steps)
        save_hf(network, out_dir / "model", tokenizer)
    metrics: dict[str, Any] = {
        "shape": asdict(shape),
        "parameters": shape.num_parameters,
        "layout": str(config.layout),
        "steps": steps,
        "tokens": steps * config.batch_tokens,
        "epochs": steps * config.batch_tokens / objective.windows.total,
        **start,
        "history": rows,
    }
    if config.samples:
        metrics["samples"] = watch.samples()
    if objective.heldout is not None:
        metrics["heldout_bits_per_byte"] = rows[-1].get("heldout_bits_per_byte")
    return metrics


def _whole_network(shape: ModelConfig, checkpoints: Path, averaged: bool, step: int) -> Transformer:
    """The network of the checkpoint of `step` (its average, where one was kept), on this process alone."""
    network = Transformer(shape)
    kind = "average" if averaged else "network"
    state = {kind: {name: tensor.detach() for name, tensor in network.named_parameters()}}
    state.setdefault("network", {}).update(network.named_buffers())
    found = checkpoint.load_latest(checkpoints, state)
    if found != step:
        raise WorkError(
            f"the last checkpoint in {checkpoints} is damaged; run again to make the steps from {found or 0} to {step}"
        )
    return network.eval()


def _start(
    config: PretrainConfig,
    tokenizer: Tokenizer,
    windows: Windows,
    out_dir: Path,
    mesh: Mesh | None,
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
    shape = shape_of(config, tokenizer.vocab_size)
    if config.warm_start == "none":
        return meta_network(shape), {}
    network = initialize(Transformer(shape), config.seed)
    kept = out_dir / "warm_start.json"  # so that a run that resumes reports the same metrics

    def resumes() -> bool:
        return kept.is_file() and checkpoint.newest(out_dir / "checkpoints") is not None

    if launch.agreed(mesh, resumes):
        return network, read_json(kept)
    # The table may use every token the run could see: counting is cheap where training is not.
    tokens = np.concatenate([np.asarray(group) for group in windows.tokens])
    loss = wiring.warm_start(network, tokens, config.seed, config.warm_start_iterations)
    if mesh is None or mesh.first:
        write_json(kept, {"bigram_loss": loss})
    return network, {"bigram_loss": loss}


def shape_of(config: PretrainConfig, vocab_size: int) -> ModelConfig:
    """The network that these settings ask for, where they name no base."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        max_seq_len=config.max_seq_len,
        family=_family(config),
        moe=MoEConfig(config.num_experts, config.experts_per_token, config.expert_size)
        if config.num_experts
        else None,
        rope_theta=config.rope_theta,
        qk_norm=config.qk_norm,
        tie_embeddings=config.tie_embeddings,
    )


def _family(config: PretrainConfig) -> str:
    """Whose names the model has on disk."""
    if config.num_experts:
        return "qwen3_moe" if config.qk_norm else "mixtral"
    return "qwen3" if config.qk_norm else "llama"
