"""A blind comparison of two models by a person: which answer is better, without knowing whose it is.

Sides are drawn for each prompt from (seed, number). What was chosen is appended to a JSONL file at once, so a
comparison can be left and taken up again. What has been chosen so far is told only when the comparison has ended:
who looks while it runs, and stops when it looks well, finds differences that are not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, Literal

import torch

from gristmill.errors import RequestError
from gristmill.files import hash_json, write_jsonl

Choice = Literal["first", "second", "neither"]
CLEAR = 0.05  # a split that chance makes this rarely is called a difference


@dataclass(frozen=True)
class Result:
    """first, second: pairs where the first (full) or the second (quantized) model's answer was chosen. ties: cannot
    tell. identical: the answers were the same text, so nobody was asked. p_value: of the exact two-sided binomial
    test over the decided pairs; 1.0 where there are none."""

    first: int
    second: int
    ties: int
    identical: int
    p_value: float

    @property
    def decided(self) -> int:
        return self.first + self.second


def binomial_p(a: int, b: int) -> float:
    """How often a fair coin splits a + b throws at least as unevenly as a to b, either way."""
    n, most = a + b, max(a, b)
    return min(1.0, 2 * sum(comb(n, k) for k in range(most, n + 1)) / 2**n)


def sentence(result: Result, first: str, second: str) -> str:
    """What the result means, for people."""
    n, p = result.decided, result.p_value
    if not n and result.ties:
        return f"You could tell {first} and {second} apart in no pair, so nothing says that they differ."
    if not n and result.identical:
        return (
            f"{first} and {second} gave the same answer to each of {result.identical} prompts, so there was nothing "
            "to judge."
        )
    if not n:
        return f"No pair was judged, so nothing is known about {first} and {second}."
    better, most = (
        (first, result.first) if result.first >= result.second else (second, result.second)
    )
    chance = _percent(p)
    if p < CLEAR:
        return (
            f"You preferred {better} in {most} of {n} decided pairs. If the two were equally good, a split at "
            f"least this uneven would come up in {chance} of such tests: the difference is real for you."
        )
    if 2 * most == n:
        split = f"You were split evenly: {most} of {n} decided pairs each way."
    else:
        split = f"You preferred {better} in {most} of {n} decided pairs."
    needed = next(k for k in range(1, 20) if binomial_p(k, 0) < CLEAR)
    few = f" ({n} decided pairs can never show one; {needed} can.)" if n < needed else ""
    return (
        f"{split} If the two were equally good, a split at least this uneven would come up in {chance} of such "
        f"tests: no difference is shown.{few}"
    )


def _percent(p: float) -> str:
    """Two digits, and no powers of ten."""
    if p < 0.0001:
        return "less than 0.01%"
    return f"{100 * p:.0f}%" if p >= 0.1 else f"{100 * p:.2g}%"


class Comparison:
    """The prompts of a comparison, who stands left, and what was chosen so far, kept in `file`.

    Raises RequestError where `file` holds the answers of another comparison, or is damaged.
    """

    def __init__(
        self, file: Path, first: str, second: str, prompts: Sequence[str], seed: int
    ) -> None:
        self.file, self.prompts = file, list(prompts)
        self._head = {
            "first": first,
            "second": second,
            "seed": seed,
            "prompts_sha256": hash_json(self.prompts),
        }
        self._rows: list[dict[str, Any]] = []
        if file.exists():
            self._rows = self._read()
        else:
            write_jsonl(file, [self._head])

    def swapped(self, number: int) -> bool:
        """Whether the second model's answer stands left for prompt `number`."""
        generator = torch.Generator().manual_seed(self._head["seed"] * 1_000_003 + number)
        return bool(torch.randint(2, (), generator=generator))

    @property
    def next(self) -> int:
        """The number of the first prompt without an answer; the number of prompts when all have one."""
        return len(self._rows)

    @property
    def ended(self) -> bool:
        return self.next == len(self.prompts) or bool(self._rows and self._rows[-1].get("ended"))

    @property
    def judged(self) -> int:
        """Pairs that a person judged."""
        return sum("choice" in row and not row["identical"] for row in self._rows)

    def answer(self, number: int, choice: Choice, identical: bool = False) -> None:
        """Keep an answer. One for another prompt than `next` is left: it was sent twice, or from an old page."""
        if number == self.next and not self.ended:
            row = {"number": number, "prompt": self.prompts[number], "choice": choice}
            self._rows.append(row | {"identical": identical})
            self._append(self._rows[-1])

    def undo(self) -> None:
        """Take the last answer of a person back, and what followed from it."""
        if self.ended or not self.judged:
            return
        while self._rows.pop()["identical"]:
            pass
        write_jsonl(self.file, [self._head, *self._rows])

    def end(self) -> None:
        """No more prompts: the result may be told."""
        if not self.ended:
            self._rows.append({"ended": True})
            self._append(self._rows[-1])

    def result(self) -> Result:
        asked = [row["choice"] for row in self._rows if row.get("identical") is False]
        first, second, ties = (asked.count(c) for c in ("first", "second", "neither"))
        identical = sum(row.get("identical") is True for row in self._rows)
        return Result(first, second, ties, identical, binomial_p(first, second))

    def _append(self, row: dict[str, Any]) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[dict[str, Any]]:
        """The answers. What a crash left of the last line is taken off the file: that answer is given again."""
        try:
            *lines, torn = self.file.read_bytes().split(b"\n")  # bytes: a letter may be torn too
            first = _line(self._head).encode()
            if not lines and first.startswith(torn):
                lines = [first]
            head, *rows = map(json.loads, lines)
            known = [row.get("ended") or row["number"] == at for at, row in enumerate(rows)]
        except (ValueError, KeyError, AttributeError, OSError):
            head, rows, known, torn = None, [], [], b""
        if head != self._head or not all(known):
            raise RequestError(
                f"{self.file} holds no answers to this comparison (other models, prompts or seed, or it is "
                "damaged); name another file with --answers, or remove it"
            )
        if torn or not self.file.stat().st_size:
            write_jsonl(self.file, [self._head, *rows])
        return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
