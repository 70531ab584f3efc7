"""What a stage will take: time, memory, disk. Honest and rough; measured values win over modelled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gristmill.recipe.manifest import read_manifest
from gristmill.stage import StageConfig

BASIS = ""


@dataclass(frozen=True)
class Estimate:
    seconds: float | None = None
    memory_bytes: float | None = None
    disk_bytes: float | None = None


def estimate(configs: Mapping[str, StageConfig], run_dir: Path) -> dict[str, Estimate]:
    found = {}
    for stage, config in configs.items():
        manifest = read_manifest(run_dir, stage)
        if manifest is not None and manifest["config"] == config.model_dump(mode="json"):
            found[stage] = Estimate(
                manifest["seconds"],
                manifest["peak_memory_bytes"],
                sum(output["bytes"] for output in manifest["outputs"].values()),
            )
    return found
