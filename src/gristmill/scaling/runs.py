"""Finished trainings as points to fit: read from results.jsonl, one line a run, or from a CSV file."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.errors import RequestError

RESULTS = "results.jsonl"
# Names that others give the columns; the replication's CSV has the second of each.
_NAMES = {
    "params": ("params", "Model Size", "N"),
    "tokens": ("tokens", "D"),
    "flops": ("flops", "Training FLOP", "C"),
    "loss": ("loss", "L"),
    "unique": ("unique_tokens", "unique", "U"),
    "lr": ("lr_factor",),
}


@dataclass(frozen=True)
class Runs:
    """Columns [runs]: N, D, C, final loss in nats a token, unique tokens, factor on the usual learning rates.

    counted: what N counts, in words; "" where the file does not say.
    """

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    unique: np.ndarray
    lr: np.ndarray
    counted: str = ""

    def __len__(self) -> int:
        return len(self.loss)

    def only(self, chosen: Any) -> Runs:
        """Those of a mask or of indices."""
        columns = (self.params, self.tokens, self.flops, self.loss, self.unique, self.lr)
        return Runs(*(column[chosen] for column in columns), counted=self.counted)

    @property
    def usual(self) -> Runs:
        """Those at the usual learning rates: the others are there for the law of the learning rate."""
        return self.only(self.lr == 1.0)


def make_runs(
    params: Any, tokens: Any, loss: Any, unique: Any = None, counted: str = "", lr: Any = None
) -> Runs:
    """Runs of plain columns; C is 6ND, and all tokens are new where `unique` is not given."""
    n, d, found = (np.asarray(column, dtype=np.float64) for column in (params, tokens, loss))
    u = d if unique is None else np.asarray(unique, dtype=np.float64)
    factors = np.ones_like(n) if lr is None else np.asarray(lr, dtype=np.float64)
    return Runs(n, d, 6 * n * d, found, u, factors, counted)


def results_file(place: Path) -> Path:
    """The file of a sweep's directory, or the file itself. Raises RequestError where there is none."""
    path = place / RESULTS if place.is_dir() else place
    if not path.is_file():
        raise RequestError(
            f"{path} is not there. `gristmill scaling sweep RUN -o DIR` makes {RESULTS}; "
            "any .jsonl or .csv with params, tokens and loss will do"
        )
    return path


def read_runs(place: Path) -> Runs:
    """The runs of a results.jsonl, a sweep's directory, or a CSV file. Tokens may be left out where FLOPs are given.

    Raises RequestError that names the file, the line and what is wrong there.
    """
    path = results_file(place)
    rows = _csv(path) if path.suffix == ".csv" else _jsonl(path)
    if not rows:
        raise RequestError(f"{path} holds no finished run")
    points = [_point(row, f"{path}, line {line}") for line, row in rows]
    counted = {str(row.get("counted", "")) for _, row in rows}
    if len(counted) > 1:
        raise RequestError(
            f"{path} mixes runs that count parameters differently: {', '.join(sorted(counted))}"
        )
    columns = np.array(points, dtype=np.float64).T
    return Runs(*columns, counted=counted.pop())


def _jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RequestError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise RequestError(f"{path}, line {number} must hold a JSON object")
        rows.append((number, row))
    return rows


def _csv(path: Path) -> list[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(enumerate(csv.DictReader(file), 2))


def _point(row: dict[str, Any], where: str) -> tuple[float, ...]:
    found = {name: _number(row, name, where) for name in _NAMES}
    params, tokens, flops = found["params"], found["tokens"], found["flops"]
    if params is None or found["loss"] is None:
        raise RequestError(f"{where} has no {'params' if params is None else 'loss'}")
    if tokens is None:
        if flops is None:
            raise RequestError(f"{where} has neither tokens nor flops")
        tokens = flops / (6 * params)
    return (
        params,
        tokens,
        6 * params * tokens if flops is None else flops,
        found["loss"],
        tokens if found["unique"] is None else min(tokens, found["unique"]),
        1.0 if found["lr"] is None else found["lr"],
    )


def _number(row: dict[str, Any], name: str, where: str) -> float | None:
    for key in _NAMES[name]:
        if row.get(key) not in (None, ""):
            try:
                value = float(row[key])
            except (TypeError, ValueError):
                value = math.nan
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"{where}: {key} must be a number above zero, not {row[key]!r}")
            return value
    return None
