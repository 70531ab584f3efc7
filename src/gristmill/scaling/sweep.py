"""Training a ladder: a process for each rung, several at once, a line of results.jsonl for each that is done.

May be killed at any byte and started again. A rung's directory has result.json once it is done, written last; before,
its checkpoints, from which its training goes on. results.jsonl is made anew of all result.json after each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gristmill.errors import RequestError, WorkError
from gristmill.files import hash_file, hash_json, lock_file, read_json, write_json, write_jsonl
from gristmill.scaling.ladder import COUNTED, Ladder, Rung
from gristmill.scaling.runs import RESULTS
from gristmill.stage import Progress, quiet

_POLL = 0.2  # seconds


@dataclass
class _Running:
    rung: Rung
    process: subprocess.Popen[bytes]
    log: Path


def train_ladder(
    ladder: Ladder,
    inputs: dict[str, Path],
    out_dir: Path,
    *,
    processes: int = 1,
    progress: Progress = quiet,
) -> list[dict[str, Any]]:
    """Train what of `ladder` is not done yet; the lines of results.jsonl. inputs: tokens, tokenizer.

    Raises RequestError where `out_dir` has another ladder or is in use, WorkError when a rung fails: the others that
    run are stopped, and go on from their checkpoints next time.
    """
    out_dir.mkdir(parents=True, exist_ok=True)

    def refusal(holder: str) -> str:
        return f"another sweep (process {holder}) is working in {out_dir}"

    with lock_file(out_dir / ".lock", refusal):
        _settle(ladder, inputs, out_dir)
        waiting = [rung for rung in ladder.rungs if _result(out_dir, rung) is None]
        running: list[_Running] = []
        rows = _collect(ladder, out_dir)
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    running.append(_start(waiting.pop(0), inputs, out_dir, processes))
                time.sleep(_POLL)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    _check(one)
                    rows = _collect(ladder, out_dir)
                done = sum(row["flops"] for row in rows)
                done += sum(one.rung.flops * _share(out_dir, one.rung) for one in running)
                values = {"runs": f"{len(rows)}/{len(ladder.rungs)}"}
                progress(done / 1e9, ladder.flops / 1e9, "GFLOP", **values)
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.wait()
    return rows


def runs_dir(out_dir: Path, rung: Rung) -> Path:
    return out_dir / "runs" / rung.name


def _settle(ladder: Ladder, inputs: dict[str, Path], out_dir: Path) -> None:
    """Write ladder.json, or see that it is this one."""
    told: dict[str, Any] = {
        "counted": COUNTED,
        "unique_tokens": ladder.unique_tokens,
        "tokens_sha256": hash_file(inputs["tokens"] / "manifest.json"),
        "rungs": [
            {**asdict(rung), "config": rung.config.model_dump(mode="json")} for rung in ladder.rungs
        ],
    }
    path = out_dir / "ladder.json"
    if not path.is_file():
        write_json(path, told)
    elif hash_json(read_json(path)) != hash_json(told):
        raise RequestError(
            f"{path} is another ladder (other FLOPs, settings or data). Name another directory with -o, or remove it"
        )


def _start(rung: Rung, inputs: dict[str, Path], out_dir: Path, processes: int) -> _Running:
    place = runs_dir(out_dir, rung)
    place.mkdir(parents=True, exist_ok=True)
    job = place / "job.json"
    write_json(
        job,
        {
            "config": rung.config.model_dump(mode="json"),
            "inputs": {name: str(path.resolve()) for name, path in inputs.items()},
            "parent": os.getpid(),
        },
    )
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    log = place / "log.txt"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gristmill.scaling.rung", str(job)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
        )
    return _Running(rung, process, log)


def _check(one: _Running) -> None:
    code = one.process.returncode
    if code:
        words = one.log.read_text(encoding="utf-8", errors="replace").strip()
        kind = RequestError if code == RequestError.exit_code else WorkError
        last = words.splitlines()[-1][-600:] if words else f"no word, exit code {code}"
        raise kind(f"rung {one.rung.name}: {last}")


def _result(out_dir: Path, rung: Rung) -> dict[str, Any] | None:
    path = runs_dir(out_dir, rung) / "result.json"
    return read_json(path) if path.is_file() else None


def _share(out_dir: Path, rung: Rung) -> float:
    """How far a rung that runs is, from the last whole line of its metrics."""
    path = runs_dir(out_dir, rung) / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        step = json.loads(lines[-1])["step"]
    except (OSError, ValueError, IndexError, KeyError):
        return 0.0
    return min(1.0, step * rung.config.batch_tokens / rung.tokens)


def _collect(ladder: Ladder, out_dir: Path) -> list[dict[str, Any]]:
    """results.jsonl of all rungs that are done, in the ladder's order."""
    rows = []
    for rung in ladder.rungs:
        found = _result(out_dir, rung)
        if found is None:
            continue
        rows.append(
            {
                "name": rung.name,
                "params": rung.params,
                "tokens": rung.tokens,
                "flops": rung.flops,
                "loss": found["loss"],
                "bits_per_byte": found["bits_per_byte"],
                "unique_tokens": min(rung.tokens, ladder.unique_tokens),
                "counted": COUNTED,
                "total_params": rung.total,
                "exact_flops": rung.exact,
                "batch_tokens": rung.config.batch_tokens,
                "lr_factor": rung.lr_factor,
                "lr_peak": rung.config.lr_peak,
                "seed": rung.config.seed,
                "loss_of": found["loss_of"],
                "seconds": found["seconds"],
                "model": f"runs/{rung.name}/model",
            }
        )
    write_jsonl(out_dir / RESULTS, rows)
    return rows
