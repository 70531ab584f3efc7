"""A build that is killed while it looks for near duplicates, at each step of that, ends with the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_near_known import edited, page, prose

from gristmill.data.build import BuildConfig, run
from gristmill.data.schema import FILES
from gristmill.files import hash_file

# Calls of `where` that return: then the process kills itself.
KILLED = """
import os, signal, sys
from pathlib import Path
import gristmill.data.duplicates.near as near
from gristmill.data.build import BuildConfig, run
source, out, where = sys.argv[1:]
kept = getattr(near, where)
def killed(*args):
    result = kept(*args)
    if where == "candidates":
        result = next(result)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(near, where, killed)
run(BuildConfig(path=source, workers=1), {}, Path(out))
"""


def bytes_of(out: Path) -> list[str]:
    return [hash_file(out / "documents" / f"{name}.parquet") for name in FILES]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "in"
    root.mkdir()
    draw = np.random.default_rng(4)
    for at in range(40):
        words = prose(draw, 200)
        for copy in range(3):
            (root / f"{at:02}-{copy}.txt").write_text(page(edited(draw, words, 3 * copy)))
    return root


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("undisturbed")
    result = run(BuildConfig(path=str(corpus), workers=1), {}, out)
    assert result.metrics["drop_reasons"]["near_duplicate"]["documents"] > 20
    return bytes_of(out)


@pytest.mark.parametrize("where", ["write_bands", "candidates", "_choose", "_summary"])
def test_killed_among_the_near_duplicates(
    corpus: Path, undisturbed: list[str], tmp_path: Path, where: str
) -> None:
    script, out = tmp_path / "killed.py", tmp_path / "out"
    script.write_text(KILLED)
    process = subprocess.run([sys.executable, str(script), str(corpus), str(out), where])
    assert process.returncode == -signal.SIGKILL
    assert list((out / "work/near").iterdir()) and not (out / "documents/train.parquet").exists()
    run(BuildConfig(path=str(corpus), workers=1), {}, out)
    assert bytes_of(out) == undisturbed
    assert sorted(path.name for path in (out / "work").iterdir()) == ["lock", "near.json", "parts"]
