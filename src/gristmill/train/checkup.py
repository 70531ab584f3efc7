"""What the files of a training say of its health: a short list, read in a moment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from gristmill.files import read_json

EPOCHS = 4.0  # after which repeated tokens teach little (Muennighoff et al. 2023)
_WAITING = 0.1  # of the time, spent waiting for data or checkpoints
State = Literal["good", "look", "bad"]


@dataclass(frozen=True)
class Check:
    """state: "look" is worth a look and may be meant."""

    name: str
    state: State
    said: str


def checkup(stage_dir: Path, steps: int, epochs: dict[str, float]) -> list[Check]:
    """Of a training of `steps` steps in `stage_dir`. epochs: group -> how often all of it is read."""
    rows = read_rows(stage_dir / "metrics.jsonl")
    found = [_incidents(read_rows(stage_dir / "incidents.jsonl")), _progress(rows, steps)]
    found += _losses(rows) + _heldout(rows) + _norms(rows)
    if epochs:
        group, most = max(epochs.items(), key=lambda item: item[1])
        said = f'group "{group}" is read {most:.1f} times over, the most of all'
        found.append(Check("data", "look" if most > EPOCHS else "good", said))
    found += _timing(read_rows(stage_dir / "timing.jsonl"))
    deaths = len(read_rows(stage_dir / "restarts.jsonl"))
    if deaths:
        found.append(Check("processes", "look", f"one died {deaths} times; see restarts.jsonl"))
    try:
        warned = read_json(stage_dir / "manifest.json")["metrics"].get("warnings", [])
    except (OSError, ValueError, KeyError):
        warned = []
    return found + [Check("shards", "look", problem) for problem in warned]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Of a file of rows that may be missing, or end in the middle of one."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _incidents(rows: list[dict[str, Any]]) -> Check:
    if not rows:
        return Check("incidents", "good", "no step was refused")
    steps = sorted({row["step"] for row in rows})
    some = ", ".join(map(str, steps[:5])) + (", …" if len(steps) > 5 else "")
    stopped = any(row["action"] == "stop" for row in rows)
    return Check(
        "incidents", "bad" if stopped else "look", f"steps refused: {some}; {len(steps)} in all"
    )


def _progress(rows: list[dict[str, Any]], steps: int) -> Check:
    done = rows[-1]["step"] if rows else 0
    if done >= steps:
        return Check("steps", "good", f"all {steps:,} are done")
    return Check("steps", "look", f"{done:,} of {steps:,} are written; it goes on or was stopped")


def _losses(rows: list[dict[str, Any]]) -> list[Check]:
    losses = [row["loss"] for row in rows if "loss" in row]
    if len(losses) < 2:
        return []
    part = max(1, len(losses) // 10)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    said = f"{'fell' if last < first else 'did not fall'}: {first:.3f} at first, {last:.3f} at last"
    # Batches differ by some percent, which is all that a short run on a warm start gains.
    state = "good" if last < first else "look" if last < 1.03 * first else "bad"
    return [Check("loss", state, said)]


def _heldout(rows: list[dict[str, Any]]) -> list[Check]:
    made = [r["heldout_bits_per_byte"] for r in rows if "heldout_bits_per_byte" in r]
    if not made:
        return [Check("held-out text", "look", "was never measured")]
    last, best = made[-1], min(made)
    said = f"{last:.3f} bits a byte at last, {best:.3f} at best, {made[0]:.3f} at first"
    if len(made) > 1 and last > 1.3 * best:
        return [Check("held-out text", "bad", f"{said}: what was learned is lost")]
    if len(made) > 1 and last > 1.01 * best:
        why = "it rises while training goes on: repeated data, or a rate that does not fall"
        return [Check("held-out text", "look", f"{said}; {why}")]
    improved = len(made) == 1 or last < made[0]
    return [Check("held-out text", "good" if improved else "look", said)]


def _norms(rows: list[dict[str, Any]]) -> list[Check]:
    norms = [row["grad_norm"] for row in rows if "grad_norm" in row]
    if norms and norms[-1] == 0:
        return [
            Check("gradients", "bad", "zero at last: nothing is learned any more, weights ran away")
        ]
    if len(norms) < 8:
        return []
    quarter = len(norms) // 4
    early, late = median(norms[quarter : 2 * quarter]), median(norms[-quarter:])
    said = f"gradient norm {late:.3g} in the last quarter, {early:.3g} in the second"
    # It grows a little where the loss is low; many times over is what comes before a divergence.
    return [Check("gradients", "look" if late > 5 * early else "good", said)]


def _timing(rows: list[dict[str, Any]]) -> list[Check]:
    if not rows:
        return []
    last = rows[-1]
    found = []
    for what in ("data", "checkpoints"):
        share = last.get(f"waited_for_{what}_s", 0.0) / max(1e-9, last["seconds"])
        if share > _WAITING:
            said = f"{share:.0%} of the time was waiting for {what}"
            found.append(Check("waiting", "look", said))
    if last.get("stragglers"):
        slow = ", ".join(map(str, last["stragglers"]))
        said = f"slow processes: {slow} ({last['slowest_over_median']:.1f} times the median)"
        found.append(Check("processes", "look", said))
    return found
