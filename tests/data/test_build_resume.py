"""A build that is killed goes on where it was; a changed setting makes anew what it touches; any executor agrees."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gristmill.data.build import BuildConfig, run
from gristmill.files import hash_path

WORDS = "mill water wheel stone grain flour river bridge sack miller winter summer".split()
KILLED = """
import sys
from pathlib import Path
from gristmill.data.build import BuildConfig, run
if __name__ == "__main__":
    run(BuildConfig(path=sys.argv[1], workers=int(sys.argv[3])), {}, Path(sys.argv[2]))
"""


def write_corpus(root: Path, files: int) -> None:
    rng = random.Random(3)
    for number in range(files):
        path = root / f"part{number % 5}" / f"{number:04}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [" ".join(rng.choices(WORDS, k=12)) + "." for _ in range(40)]
        if number % 7 == 0 and number:  # a near duplicate of the one before
            lines = (
                (root / f"part{(number - 1) % 5}" / f"{number - 1:04}.md").read_text().splitlines()
            )
            lines[3] = "A line of its own."
        path.write_text("\n".join(lines) + "\n")
    rows = [{"text": " ".join(rng.choices(WORDS, k=30))} for _ in range(300)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "in"
    write_corpus(root, 400)
    return root


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("undisturbed")
    run(BuildConfig(path=str(corpus), workers=1), {}, out)
    return hash_path(out / "documents")


def parts(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "work" / "parts").iterdir()}


def test_killed_at_random_moments_it_ends_with_the_same_bytes(corpus, undisturbed, tmp_path):
    script, out, rng = tmp_path / "killed.py", tmp_path / "out", random.Random(8)
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(corpus), str(out)]
    kills = 0
    while kills < 50:
        process = subprocess.Popen([*command, "1"], stderr=subprocess.PIPE, start_new_session=True)
        time.sleep(rng.uniform(0.05, 1.2))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        else:
            assert process.returncode == 0, process.stderr.read()  # it was faster: begin again
            for path in sorted((out / "work").rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
        process.communicate()
    subprocess.run([*command, "2"], check=True)
    assert hash_path(out / "documents") == undisturbed


def test_a_second_build_makes_no_part_anew(corpus, undisturbed, tmp_path):
    run(BuildConfig(path=str(corpus), workers=1), {}, tmp_path)
    made = parts(tmp_path)
    run(BuildConfig(path=str(corpus), workers=1, near_duplicate=0.95), {}, tmp_path)
    assert parts(tmp_path) == made, "the threshold is not what parts depend on"
    assert hash_path(tmp_path / "documents") != undisturbed
    run(BuildConfig(path=str(corpus), workers=1), {}, tmp_path)
    assert (parts(tmp_path), hash_path(tmp_path / "documents")) == (made, undisturbed)


def test_a_changed_file_and_a_changed_setting_make_anew_what_they_touch(tmp_path):
    write_corpus(tmp_path / "in", 400)
    config = BuildConfig(path=str(tmp_path / "in"), workers=1)
    run(config, {}, tmp_path / "out")
    made = parts(tmp_path / "out")
    with open(tmp_path / "in/part2/0012.md", "a") as file:
        file.write("One more line at the end of it.\n")
    run(config, {}, tmp_path / "out")
    after = parts(tmp_path / "out")
    assert len(after.keys() - made.keys()) == len(made.keys() - after.keys()) == 1
    assert all(after[name] == made[name] for name in after.keys() & made.keys())
    run(config.model_copy(update={"seed": 1}), {}, tmp_path / "out")
    assert not parts(tmp_path / "out").keys() & after.keys()


def test_a_part_cut_short_is_made_again(corpus, undisturbed, tmp_path):
    run(BuildConfig(path=str(corpus), workers=1), {}, tmp_path)
    for number, path in enumerate(sorted((tmp_path / "work/parts").iterdir())):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if number % 2 else b"")
    run(BuildConfig(path=str(corpus), workers=1), {}, tmp_path)
    assert hash_path(tmp_path / "documents") == undisturbed


def test_ray_gives_the_same_bytes(corpus, undisturbed, tmp_path):
    import ray

    try:
        run(BuildConfig(path=str(corpus), workers=2, executor="ray"), {}, tmp_path)
    finally:
        ray.shutdown()
    assert hash_path(tmp_path / "documents") == undisturbed


def test_two_builds_do_not_write_one_directory(corpus, tmp_path):
    from gristmill.errors import RequestError
    from gristmill.files import lock_file

    (tmp_path / "work").mkdir()
    with (
        lock_file(tmp_path / "work/lock", str),
        pytest.raises(RequestError, match=f"another build \\({os.getpid()}\\) writes"),
    ):
        run(BuildConfig(path=str(corpus), workers=1), {}, tmp_path)
