"""The whole line, killed at random moments and started again, ends at what an undisturbed run makes.

Attempts are forked from one process that has imported everything, so that kills fall into the work and not into
seconds of importing; it also lets training save its state every half second, so that there is some to resume from.
GRISTMILL_KILLS sets how many kills there are, GRISTMILL_KILL_SEED when they come.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from gristmill.files import hash_file, read_json

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("GRISTMILL_KILLS", "20"))
MODULES = (
    *(
        "heapq",
        "textwrap",
        "shlex",
        "bisect",
        "statistics",
        "fractions",
        "calendar",
        "queue",
        "sched",
    ),
    *("string", "fnmatch", "glob", "shutil", "tempfile", "random", "csv", "configparser", "copy"),
    *("dataclasses", "datetime", "difflib", "functools", "contextlib", "graphlib", "pprint", "cmd"),
)
SETTINGS = {
    **{f"{stage}.checkpoint_seconds": 0.5 for stage in ("pretrain", "sft", "dpo")},
    "size": "tiny",
    "tokenizer.vocab_size": 512,
    "data.heldout_fraction": 0.2,
    "pretrain.tokens": 24_576,
    "pretrain.warm_start_iterations": 4,
    "questions.max_facts": 40,
    "questions.heldout_facts": 20,
    "questions.choices_seen": 8,
    "questions.choices_heldout": 8,
    "dpo.max_pairs": 32,
    "dpo.own_samples": 8,
    "baselines.heldout_bytes": 20_000,
    "evaluate.choices": 8,
    "evaluate.pairs": 8,
}
# One line in: the arguments of a run. Out: its process id, and when it has ended its exit status.
FORK = """
import json, os, sys
from gristmill.cli import main, run
from gristmill.recipe import Recipe
from gristmill.recipe.line import LINE

for node in LINE.values():
    node.load()
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.setsid()
        log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["gristmill", *json.loads(line)]
        try:
            main.main()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def environment(log: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "LOG": str(log),
        "NO_COLOR": "1",
    }


class Runs:
    """Runs of the recipe over one small corpus, each in a directory under `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, root / "log.txt"
        corpus = root / "corpus"
        corpus.mkdir()
        for name in MODULES:
            shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py", corpus)
        self.settings = {**SETTINGS, "data.sources": [str(corpus)]}
        self.server = subprocess.Popen(
            [sys.executable, "-c", FORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(self.log),
        )
        assert self._line() == "ready"

    def arguments(self, name: str) -> list[str]:
        pairs = [f"{key}={_toml(value)}" for key, value in self.settings.items()]
        return [
            "run",
            "pyhelp",
            "--out",
            str(self.root / name),
            *(a for p in pairs for a in ("--set", p)),
        ]

    def command(self, name: str) -> None:
        """The program itself, as people start it."""
        done = subprocess.run(
            [sys.executable, "-m", "gristmill.cli.main", *self.arguments(name)],
            env=environment(self.log),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    def attempt(self, name: str, kill_after: float | None = None) -> bool:
        """Start or resume a run; True when it reached its end before `kill_after` seconds."""
        stdin, started = self.server.stdin, time.monotonic()
        assert stdin is not None
        stdin.write(json.dumps(self.arguments(name)) + "\n")
        stdin.flush()
        child = int(self._line())
        if kill_after is not None:
            while time.monotonic() - started < kill_after and _alive(child):
                time.sleep(0.005)
            if _alive(child):
                os.kill(child, signal.SIGKILL)
        status = int(self._line())
        _end_group(child)
        assert status in (0, -signal.SIGKILL), self.log.read_text()[-4000:]
        return status == 0

    def _line(self) -> str:
        return _stdout(self.server).readline().strip()

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


def _stdout(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _toml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _end_group(leader: int) -> None:
    """Workers of a killed run, if it had any."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def results(run: Path) -> dict[str, Any]:
    """What must be equal: every model, every manifest's metrics, every training curve."""
    found: dict[str, Any] = {}
    for path in sorted(run.glob("*/manifest.json")):
        found[f"{path.parent.name} metrics"] = read_json(path)["metrics"]
    for path in sorted(run.glob("*/model/model.safetensors")):
        found[f"{path.parent.parent.name} weights"] = hash_file(path)
    for path in sorted(run.glob("*/metrics.jsonl")):
        found[f"{path.parent.name} curve"] = path.read_text()
    return found


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert list(found) == list(wanted)
    for name in wanted:
        assert found[name] == wanted[name], name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("kill"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> tuple[dict[str, Any], float]:
    """(what one run makes, the seconds it took)"""
    started = time.monotonic()
    assert runs.attempt("undisturbed")
    return results(runs.root / "undisturbed"), time.monotonic() - started


def test_two_undisturbed_runs_make_the_same(runs, undisturbed):
    """The second is the command itself, in another process with other hash seeds and its own imports."""
    runs.command("command")
    found = results(runs.root / "command")
    assert {"pretrain weights", "sft weights", "dpo weights", "quantize weights"} <= set(found)
    assert {"pretrain curve", "sft curve", "dpo curve", "evaluate metrics"} <= set(found)
    assert_same(found, undisturbed[0])


@pytest.mark.slow
def test_killed_and_resumed_runs_make_the_same(runs, undisturbed):
    wanted, seconds = undisturbed
    seed = int(os.environ.get("GRISTMILL_KILL_SEED", random.randrange(2**32)))
    draw = random.Random(seed)
    print(f"GRISTMILL_KILL_SEED={seed}, undisturbed {seconds:.1f} s")
    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        name, before, started = f"killed-{rounds}", kills, time.monotonic()
        while not runs.attempt(name, draw.uniform(0, seconds) if kills < KILLS else None):
            kills += 1
        if (
            kills == before
        ):  # the machine is less busy than it was: else most kills would come too late
            seconds = min(seconds, time.monotonic() - started)
        print(f"round {rounds}: {kills - before} kills")
        assert_same(results(runs.root / name), wanted)
        shutil.rmtree(runs.root / name)
    assert kills == KILLS
