"""Running the line: judge every stage, skip what is unchanged, run the rest.

A stage's directory holds `.work.json` (the key of the work in it) from the first byte and
`manifest.json` from the last. Killed in between, the next run finds the same key and lets the stage
go on from what is there (training resumes from its checkpoints); under another key the directory is
emptied first.
"""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from gristmill.errors import (
    GristmillError,
    RequestError,
    WorkError,
    nearest,
    out_of_memory,
    refused_by_system,
)
from gristmill.files import lock_file, read_json, write_bytes, write_json, write_text
from gristmill.recipe.line import Line, ancestors, descendants, parents
from gristmill.recipe.manifest import (
    SCHEMA,
    damage,
    describe_output,
    input_entries,
    manifest_path,
    read_manifest,
    stage_key,
    versions,
)
from gristmill.recipe.recipe import Recipe
from gristmill.recipe.usage import PeakMemory
from gristmill.recipe.view import Quiet, View
from gristmill.stage import StageConfig

Action = Literal["skip", "run", "resume", "depends"]


@dataclass(frozen=True)
class Judgement:
    """What will happen to a stage, and why. "depends": known once the stages before it have run."""

    stage: str
    action: Action
    why: str
    key: str = ""
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    dir: Path
    ran: list[str]
    skipped: list[str]
    manifests: dict[str, dict[str, Any]]
    model: Path | None
    report: Path | None

    def to_json(self) -> dict[str, Any]:
        return {
            "dir": str(self.dir),
            "ran": self.ran,
            "skipped": self.skipped,
            "model": str(self.model) if self.model else None,
            "report": str(self.report) if self.report else None,
            "seconds": {name: m["seconds"] for name, m in self.manifests.items()},
            "metrics": {name: m["metrics"] for name, m in self.manifests.items()},
        }


def plan(
    recipe: Recipe,
    configs: Mapping[str, StageConfig],
    run_dir: Path,
    *,
    from_stage: str | None = None,
    until: str | None = None,
    verify: bool = False,
) -> list[Judgement]:
    """What a run would do, stage by stage. Reads the run directory and changes nothing."""
    line = recipe.line
    forced = _forced(line, from_stage)
    recipe.check_apart(configs, run_dir)
    outside = recipe.fingerprints(configs)
    known: dict[str, dict[str, Any]] = {}
    judgements = []
    for stage in _chosen(line, until):
        waiting = [parent for parent in parents(line, stage) if parent not in known]
        if waiting:
            why = f"after {', '.join(waiting)}" if len(waiting) < 4 else "after those before it"
            judgements.append(Judgement(stage, "run" if stage in forced else "depends", why))
            continue
        key, inputs = _key(recipe, configs[stage], run_dir, stage, known, outside)
        judgement = _judge(run_dir, stage, configs[stage], key, inputs, stage in forced, verify)
        if judgement.action == "skip":
            known[stage] = dict(judgement.manifest or {})
        judgements.append(judgement)
    return judgements


def execute(
    recipe: Recipe,
    run_dir: Path,
    *,
    from_stage: str | None = None,
    until: str | None = None,
    verify: bool = False,
    view: View | None = None,
) -> RunResult:
    """Run what a recipe needs in `run_dir`. Checks everything first; see Recipe.run."""
    view = view or Quiet()
    line = recipe.line
    chosen, forced = _chosen(line, until), _forced(line, from_stage)
    configs = recipe.resolve()
    recipe.check_apart(configs, run_dir)
    outside = recipe.fingerprints(configs)
    _check_directory(run_dir, line)
    known: dict[str, dict[str, Any]] = {}
    ran: list[str] = []
    with _writing_in(run_dir), _locked(run_dir), view:
        write_text(run_dir / "recipe.toml", recipe.to_toml(configs))
        view.begin({stage: line[stage].does for stage in chosen})
        for stage in chosen:
            key, inputs = _key(recipe, configs[stage], run_dir, stage, known, outside)
            judgement = _judge(run_dir, stage, configs[stage], key, inputs, stage in forced, verify)
            if judgement.action == "skip":
                known[stage] = dict(judgement.manifest or {})
                _tidy(run_dir / stage)  # it may have been killed right after it wrote its manifest
                view.skipped(stage, known[stage])
            else:
                view.started(stage, judgement.why)
                _point_at_model(recipe, run_dir, known, unless=stage)
                try:
                    known[stage] = _run_stage(recipe, configs[stage], run_dir, judgement, view)
                except RequestError:
                    if judgement.manifest and manifest_path(run_dir, stage).is_file():  # put back
                        kept = {**known, stage: dict(judgement.manifest)}
                        _point_at_model(recipe, run_dir, kept)
                    raise
                ran.append(stage)
                view.finished(stage, known[stage])
            _publish(line, run_dir, stage, known[stage])
            _point_at_model(recipe, run_dir, known)
    pointer = _read_pointer(run_dir)
    report = run_dir / "report.html"
    return RunResult(
        dir=run_dir,
        ran=ran,
        skipped=[stage for stage in chosen if stage not in ran],
        manifests=known,
        model=run_dir / pointer["model"] if "model" in pointer else None,
        report=report if report.is_file() and "report" in known else None,
    )


def _chosen(line: Line, until: str | None) -> list[str]:
    if until is None:
        return list(line)
    _check_stage(line, until, "--until")
    needed = ancestors(line, [until])
    return [stage for stage in line if stage in needed]


def _forced(line: Line, from_stage: str | None) -> set[str]:
    if from_stage is None:
        return set()
    _check_stage(line, from_stage, "--from")
    return descendants(line, from_stage)


def _check_stage(line: Line, stage: str, option: str) -> None:
    if stage not in line:
        raise RequestError(
            f'{option}: there is no stage "{stage}".{nearest(stage, line)} '
            f"The line is {', '.join(line)}."
        )


def _key(
    recipe: Recipe,
    config: StageConfig,
    run_dir: Path,
    stage: str,
    known: Mapping[str, Mapping[str, Any]],
    outside: Mapping[str, str],
) -> tuple[str, dict[str, dict[str, str]]]:
    """A stage's key and its inputs. All its makers are in `known`."""
    node = recipe.line[stage]
    inputs = input_entries(run_dir, node, known)
    return stage_key(stage, node, config, inputs, outside.get(stage, "")), inputs


def _judge(
    run_dir: Path,
    stage: str,
    config: StageConfig,
    key: str,
    inputs: Mapping[str, Mapping[str, str]],
    forced: bool,
    verify: bool,
) -> Judgement:
    """Whether a stage must run, from its key and what is on disk."""
    manifest = read_manifest(run_dir, stage)

    def judged(action: Action, why: str) -> Judgement:
        return Judgement(stage, action, why, key, inputs, manifest)

    if forced:
        return judged("run", "asked for with --from")
    if manifest is None:
        if _work_key(run_dir / stage) == key:
            return judged("resume", "was interrupted")
        return judged("run", "not run yet")
    if manifest["key"] != key:
        return judged("run", _what_changed(manifest, config, inputs))
    damaged = damage(run_dir, manifest, verify)
    return judged("run", damaged) if damaged else judged("skip", "unchanged")


def _what_changed(
    manifest: Mapping[str, Any], config: StageConfig, inputs: Mapping[str, Mapping[str, str]]
) -> str:
    """The reason for which a key differs, in words."""
    old, new = manifest["config"], config.model_dump(mode="json")
    how = type(config).HOW
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and key not in how]
    if keys:
        key = keys[0]
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        return f"{key} changed from {_short(old.get(key))} to {_short(new.get(key))}{more}"
    changed = [
        name
        for name, entry in inputs.items()
        if manifest["inputs"].get(name, {}).get("sha256") != entry["sha256"]
    ]
    if changed:
        return f"{', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''} changed"
    if manifest["versions"].get("gristmill") != versions()["gristmill"]:
        return "made by another version of gristmill"
    return "what it reads has changed"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 30 else text[:29] + "…"


def _run_stage(
    recipe: Recipe, config: StageConfig, run_dir: Path, judgement: Judgement, view: View
) -> dict[str, Any]:
    """Run one stage in its directory and write its manifest."""
    stage = judgement.stage
    out_dir = run_dir / stage
    before = run_dir / f".{stage}.before"
    shutil.rmtree(before, ignore_errors=True)
    if judgement.action != "resume":
        if judgement.manifest is not None:
            os.replace(out_dir, before)  # finished work, until the new work is accepted
        _empty(out_dir)
    out_dir.mkdir(exist_ok=True)
    write_json(out_dir / ".work.json", {"key": judgement.key})
    paths = {name: run_dir / entry["path"] for name, entry in judgement.inputs.items()}

    def progress(done: float, total: float, unit: str = "", **values: Any) -> None:
        view.progress(stage, done, total, unit, values)

    foreseen = run_dir / "prediction.json"  # written before training (scaling/predict.py)
    registered = read_json(foreseen) if stage == "pretrain" and foreseen.is_file() else None
    started = time.perf_counter()
    try:
        with PeakMemory() as memory:
            result = recipe.line[stage].runner()(config, paths, out_dir, progress)
        outputs = {
            name: describe_output(run_dir, Path(path)) for name, path in result.outputs.items()
        }
    except GristmillError as error:
        if isinstance(error, RequestError) and before.exists():  # nothing was worked
            _empty(out_dir)
            os.replace(before, out_dir)
        raise type(error)(f"stage {stage}: {error}") from error
    except OSError as error:
        raise WorkError(f"stage {stage} could not go on: {error}") from error
    except Exception as error:
        if out_of_memory(error):
            raise WorkError(
                f"stage {stage} needs more memory than this machine has left. End other programs, or "
                "choose a smaller --set size=…; --dry-run says what each stage needs."
            ) from error
        trace = out_dir / "error.txt"
        write_text(trace, traceback.format_exc())
        raise WorkError(
            f"stage {stage} failed: {type(error).__name__}: {error}\n"
            f"That is a defect of gristmill. The traceback is in {trace}."
        ) from error
    (out_dir / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
    manifest = {
        "schema": SCHEMA,
        "stage": stage,
        "key": judgement.key,
        "config": config.model_dump(mode="json"),
        "inputs": dict(judgement.inputs),
        "outputs": outputs,
        "metrics": result.metrics,
        **({"prediction": registered} if registered else {}),
        "seed": getattr(config, "seed", None),
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": memory.bytes,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(manifest_path(run_dir, stage), manifest)
    shutil.rmtree(before, ignore_errors=True)
    _tidy(out_dir)
    return manifest


def _tidy(out_dir: Path) -> None:
    """Remove what a finished stage would have resumed from."""
    (out_dir / ".work.json").unlink(missing_ok=True)
    shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)


def _work_key(out_dir: Path) -> str:
    try:
        return str(read_json(out_dir / ".work.json")["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _empty(out_dir: Path) -> None:
    """Remove a stage's directory; its marks first, so that half a removal is no work."""
    (out_dir / "manifest.json").unlink(missing_ok=True)
    (out_dir / ".work.json").unlink(missing_ok=True)
    if out_dir.exists():
        shutil.rmtree(out_dir)


def _check_directory(run_dir: Path, line: Line) -> None:
    """Refuse to work in a directory that is something else: stages empty the folders they own."""
    if run_dir.exists() and not run_dir.is_dir():
        raise RequestError(f"{run_dir} is a file, not a directory to run in")
    if not run_dir.is_dir() or (run_dir / "recipe.toml").is_file():
        return
    taken = [stage for stage in line if (run_dir / stage).exists()]
    if taken:
        raise RequestError(
            f"{run_dir} is not a run of gristmill and has something called "
            f'"{taken[0]}" in it, which a run would replace. Choose another directory with --out.'
        )


@contextmanager
def _writing_in(run_dir: Path) -> Iterator[None]:
    """What the system refuses between the stages becomes one message that names the run's directory."""
    try:
        yield
    except BrokenPipeError:  # whoever read the progress has left; the run's directory is fine
        raise
    except OSError as error:
        refused = refused_by_system(error)
        cure = (
            "Choose another directory with --out."
            if isinstance(refused, RequestError)
            else "Free some space there, or choose another directory with --out."
        )
        raise type(refused)(f"cannot work in {run_dir}: {refused}. {cure}") from error


def _publish(line: Line, run_dir: Path, stage: str, manifest: Mapping[str, Any]) -> None:
    """Show an output at the top of the run directory too."""
    for output, name in line[stage].publish.items():
        data = (run_dir / manifest["outputs"][output]["path"]).read_bytes()
        target = run_dir / name
        if not target.is_file() or target.read_bytes() != data:
            write_bytes(target, data)


def _read_pointer(run_dir: Path) -> dict[str, str]:
    try:
        return dict(read_json(run_dir / "run.json"))
    except (OSError, ValueError):
        return {}


def _point_at_model(
    recipe: Recipe, run_dir: Path, known: Mapping[str, Mapping[str, Any]], unless: str = ""
) -> None:
    """Keep run.json on the latest model and index that are up to date, so that RUN is a MODEL.

    Until the first new model exists, an earlier run's stays usable; unless: the stage that is about
    to be emptied.
    """
    old = _read_pointer(run_dir)
    pointer = {
        name: path
        for name, path in old.items()
        if name != "recipe" and path.split("/")[0] != unless
    }
    for stage, manifest in known.items():
        if recipe.line[stage].model:
            pointer["model"] = manifest["outputs"]["model"]["path"]
        if "index" in manifest["outputs"]:
            pointer["index"] = manifest["outputs"]["index"]["path"]
    if "model" in pointer:
        pointer = {"model": pointer["model"], **pointer, "recipe": recipe.name}
        if pointer != old:
            write_json(run_dir / "run.json", pointer)
    elif old:
        (run_dir / "run.json").unlink()


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory; a second run in it is refused."""
    run_dir.mkdir(parents=True, exist_ok=True)

    def refusal(holder: str) -> str:
        return (
            f"another run (process {holder}) is working in {run_dir}. Wait for it, or choose "
            "another directory with --out."
        )

    with lock_file(run_dir / ".lock", refusal):
        yield
