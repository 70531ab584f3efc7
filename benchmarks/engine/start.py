"""Cold starts: from nothing to the first token of the 134M model, and to the end of `gristmill --help`.

Each is a process of its own, imports included; the file is in the system's cache after the first round.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.engine import models
from benchmarks.engine.contest import interleaved
from benchmarks.engine.report import Ratio, finish

PROMPT = [1000 + i for i in range(32)]
OURS = f"""
import sys
from gristmill.engine import Engine
from gristmill.formats import Model
from gristmill.lm import Request, SamplingParams
params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
engine = Engine(Model.load(sys.argv[1]))
print(engine.generate([Request(token_ids={PROMPT}, params=params)])[0].token_ids[0], flush=True)
"""
THEIRS = f"""
import sys
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.inference_mode():
    print(int(model.generate(torch.tensor([{PROMPT}]), max_new_tokens=1, do_sample=False)[0, -1]), flush=True)
"""


def run(rounds: int, place: Path) -> dict[str, Any]:
    model = models.written(place, "134M")
    command = Path(sys.executable).with_name("gristmill")
    first = {"first token": [sys.executable, "-c", OURS, str(model)]}
    first["transformers' first token"] = [sys.executable, "-c", THEIRS, str(model)]
    sides = first | {"gristmill --help": [str(command), "--help"]}
    runs = interleaved(
        {name: partial(first_line, sides[name], name in first) for name in sides}, rounds
    )
    ours, theirs, shown = (median(runs[name]) for name in sides)
    ratios = [
        Ratio("seconds to the first token, imports included", ours, 2, at_most=True),
        Ratio("ours / transformers", ours / theirs),
        Ratio("seconds of gristmill --help", shown, 0.4, at_most=True),
    ]
    return finish(ratios, "s", runs, {"model": "134M float32", "prompt_tokens": len(PROMPT)})


def first_line(command: list[str], only_first: bool) -> float:
    """Seconds until the process has said its first line, or has ended. Raises when it says nothing."""
    start = perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        if not only_first:
            process.stdout.read()
            process.wait()
        seconds = perf_counter() - start
        error = process.stderr.read()
    if not line or process.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{error[-3000:]}")
    return seconds
