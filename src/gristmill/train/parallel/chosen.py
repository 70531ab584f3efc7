"""What the planner says before a training starts: which layout to take, and whether it will fit."""

from __future__ import annotations

import os
from typing import Any

import torch

from gristmill import plan
from gristmill.errors import RequestError
from gristmill.machine import available_memory
from gristmill.model import ModelConfig
from gristmill.train.parallel import layout as layouts
from gristmill.train.parallel.layout import Layout


def layout_for(config: Any, shape: ModelConfig) -> Layout:
    """The layout that the planner finds fastest on the devices here, or on those of the processes that were started.

    Raises RequestError where none fits.
    """
    world = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or "0")
    world = world or max(1, torch.cuda.device_count())
    if world == 1:
        return Layout()
    found = plan.best_layouts(
        shape,
        world,
        _device(),
        batch_tokens=config.batch_tokens,
        training=_training(config, 1),
        most=50,
    )
    rows = config.batch_tokens // config.context // config.micro_batches
    for one in found:
        sizes = {
            name: getattr(one.layout, name)
            for name in Layout.model_fields
            if hasattr(one.layout, name)
        }
        layout = Layout(**sizes)
        try:
            layouts.check(
                layout,
                shape,
                batch_rows=rows,
                context=config.context,
                micro_batches=config.micro_batches,
            )
        except RequestError:
            continue
        return layout
    raise RequestError(
        f'pretrain.layout = "auto": no layout of {world} processes fits the model, the batch and the memory; '
        "`gristmill plan` shows what would"
    )


def check_memory(config: Any, shape: ModelConfig, device: torch.device) -> None:
    """Raises RequestError where this process will need more memory than there is, with what would do."""
    layout: Layout = config.layout
    rows = max(1, config.batch_tokens // config.context // config.micro_batches // layout.rows)
    training = _training(config, rows)
    if device.type == "cuda":
        available = float(torch.cuda.mem_get_info(device)[0])
    else:  # processes of one machine share it
        local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or "1")
        available = available_memory() / local
    said = plan.shortage(shape, layout, training, available)
    if said is not None:
        raise RequestError(f"pretraining {said}")


def _training(config: Any, rows: int) -> plan.Training:
    computes = config.compute_dtype
    if computes == "auto":
        computes = "bfloat16" if torch.cuda.is_available() else "float32"
    return plan.Training(
        precision="fp8" if config.fp8 else computes,
        micro_batch_rows=rows,
        context=config.context,
        optimizer=config.optimizer,
        recompute=config.recompute,
        micro_batches=config.micro_batches,
        kernels="cuda" if torch.cuda.is_available() else "native",
        apart=config.documents == "apart",
        ema=config.ema_decay > 0,
    )


def _device() -> plan.Device:
    if not torch.cuda.is_available():
        return plan.device("here")
    name = torch.cuda.get_device_name().lower()
    known = plan.devices()
    return next((known[key] for key in known if key in name.replace(" ", "-")), known["h100"])
