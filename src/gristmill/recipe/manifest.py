"""The manifest of a finished stage: what it was made from, what it made, and their hashes.

`RUN/STAGE/manifest.json` is written last, so a stage without one is not finished. Every path in it
is relative to the run directory, which can therefore be moved.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gristmill import __version__
from gristmill.errors import RequestError, nearest
from gristmill.files import hash_file, hash_json, hash_path, read_json
from gristmill.recipe.line import MANIFEST, Node
from gristmill.stage import StageConfig

SCHEMA = 1
_VERIFIED_BYTES = 64 << 20  # outputs up to this size are re-hashed before they are trusted


def manifest_path(run_dir: Path, stage: str) -> Path:
    return run_dir / stage / "manifest.json"


def read_manifest(run_dir: Path, stage: str) -> dict[str, Any] | None:
    """The manifest of a finished stage; None when there is none that can be read."""
    try:
        manifest = read_json(manifest_path(run_dir, stage))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("schema") == SCHEMA else None


def read_manifests(run_dir: Path) -> dict[str, dict[str, Any]]:
    """stage -> manifest of every finished stage of a run, in name order."""
    found = {}
    for path in sorted(run_dir.glob("*/manifest.json")):
        manifest = read_manifest(run_dir, path.parent.name)
        if manifest is not None:
            found[path.parent.name] = manifest
    return found


def stage_key(
    stage: str,
    node: Node,
    config: StageConfig,
    inputs: Mapping[str, Mapping[str, str]],
    outside: str = "",
) -> str:
    """What a stage's outputs are a function of, hashed.

    The stage and its versions, its settings (its seed is one of them; a recipe's seed reaches only
    the stages that use randomness), the content of its inputs, and what it reads from outside the
    run.
    """
    return hash_json(
        {
            "schema": SCHEMA,
            "gristmill": __version__,
            "stage": stage,
            "version": getattr(node.load(), "VERSION", 1),
            "config": config.decisive(),
            "inputs": {name: entry["sha256"] for name, entry in inputs.items()},
            "outside": outside,
        }
    )


def describe_output(run_dir: Path, path: Path) -> dict[str, Any]:
    """The manifest's entry for a finished output."""
    return {
        "path": path.relative_to(run_dir).as_posix(),
        "sha256": hash_path(path),
        "bytes": size_of(path),
    }


def input_entries(
    run_dir: Path, node: Node, manifests: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """The manifest's `inputs`: artifact -> path, sha256 and the stage that made it.

    The hash is taken from the maker's manifest; its outputs were verified when it was judged.
    """
    entries = {}
    for name, (maker, output) in node.inputs.items():
        if output == MANIFEST:
            path = manifest_path(run_dir, maker)
            entry = {"path": path.relative_to(run_dir).as_posix(), "sha256": hash_file(path)}
        else:
            made = manifests[maker]["outputs"][output]
            entry = {"path": made["path"], "sha256": made["sha256"]}
        entries[name] = {**entry, "stage": maker}
    return entries


def damage(run_dir: Path, manifest: Mapping[str, Any], verify: bool = False) -> str:
    """What is wrong with a finished stage's outputs on disk, or ''.

    Lengths are always compared. Content is hashed for outputs up to 64 MiB, and for all with
    `verify`: hashing a large run's shards at every start would cost more than it finds.
    """
    for output in manifest["outputs"].values():
        path = run_dir / output["path"]
        if not path.exists():
            return f"{output['path']} is missing"
        size = size_of(path)
        if size != output["bytes"]:
            return f"{output['path']} has {size:,} bytes instead of {output['bytes']:,}"
        if (verify or size <= _VERIFIED_BYTES) and hash_path(path) != output["sha256"]:
            return f"{output['path']} was changed"
    return ""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files under a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def versions() -> dict[str, str]:
    """What made a stage's outputs, besides its inputs."""
    found = {"gristmill": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def lineage(run_dir: str | Path, artifact: str) -> dict[str, Any]:
    """Where an artifact comes from: its stage, its settings, and the same of every input.

    artifact: a stage ("dpo") or a path in the run directory ("dpo/model"). Returns nested
    {"stage", "artifact", "key", "config", "versions", "outputs", "from": [the same for each
    input]}, down to the stages that read the documents. Raises RequestError that lists what was
    made when nothing of that name was.
    """
    run_dir = Path(run_dir)
    artifact = artifact.strip("/")
    chain = _chain(run_dir, artifact, read_manifests(run_dir))
    made = [output["path"] for output in chain["outputs"].values()]
    if artifact not in (chain["stage"], *made) and not (run_dir / artifact).exists():
        raise RequestError(
            f'{run_dir} has no "{artifact}".{nearest(artifact, made)} '
            f"The stage {chain['stage']} made: {', '.join(made)}."
        )
    return chain


def _chain(run_dir: Path, artifact: str, manifests: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    stage = artifact.split("/")[0]
    if stage not in manifests:
        raise RequestError(
            f'{run_dir} has no finished stage "{stage}".{nearest(stage, manifests)} '
            f"Finished: {', '.join(manifests) or 'none'}."
        )
    manifest = manifests[stage]
    return {
        "stage": stage,
        "artifact": artifact,
        "key": manifest["key"],
        "config": manifest["config"],
        "versions": manifest["versions"],
        "outputs": manifest["outputs"],
        "from": [
            {**_chain(run_dir, entry["path"], manifests), "sha256": entry["sha256"]}
            for entry in manifest["inputs"].values()
        ],
    }
