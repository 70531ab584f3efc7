"""Checkpoints: damage is found and passed over aloud, a full disk leaves the older ones, two are kept."""

from __future__ import annotations

import os
import resource
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from gristmill.errors import WorkError
from gristmill.train import checkpoint


def state(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "network": {
            "a.weight": torch.randn(64, 32, generator=generator),
            "b": torch.ones(3) * step,
        },
        "optimizers": [
            {"state": {0: {"step": torch.tensor(float(step))}}, "groups": [{"lr": 0.1}]}
        ],
        "rows": f"[{step}]",
    }


def load(directory: Path) -> tuple[int | None, dict]:
    into = state(999)
    return checkpoint.load_latest(directory, into), into


def largest_file(found: Path) -> Path:
    return max((p for p in found.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    for step in (3, 12):
        checkpoint.save(tmp_path / "c", step, state(step))
    return tmp_path / "c"


def assert_is(step: int, loaded: tuple[int | None, dict]) -> None:
    found, values = loaded
    assert found == step
    wanted = state(step)
    assert torch.equal(values["network"]["a.weight"], wanted["network"]["a.weight"])
    assert torch.equal(values["network"]["b"], wanted["network"]["b"])
    assert values["optimizers"][0]["state"][0]["step"].item() == step
    assert values["rows"] == f"[{step}]"


def test_nothing_there_is_no_checkpoint(tmp_path):
    assert load(tmp_path / "none")[0] is None


def test_newest_is_loaded_in_place_without_a_warning(two):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_is(12, load(two))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "said"),
    [(truncate, "bytes instead of"), (flip, "does not match its checksum"), (os.remove, "missing")],
)
def test_damaged_newest_is_passed_over_for_the_one_before(two, harm, said):
    harm(largest_file(two / "step-00000012"))
    with pytest.warns(UserWarning, match=f"step-00000012 is damaged .*{said}"):
        assert_is(3, load(two))


@pytest.mark.parametrize(
    "harm", [lambda file: os.truncate(file, 30), os.remove, lambda file: file.write_text("{}")]
)
def test_damaged_manifest_is_damage_too(two, harm):
    harm(two / "step-00000012" / "checkpoint.json")
    with pytest.warns(UserWarning, match="no readable manifest"):
        assert_is(3, load(two))


def test_all_damaged_is_no_checkpoint(two):
    for found in two.iterdir():
        flip(largest_file(found))
    with pytest.warns(UserWarning, match="is damaged"):
        assert load(two)[0] is None


def test_damaged_checkpoint_of_the_same_step_is_replaced(two):
    truncate(largest_file(two / "step-00000012"))
    checkpoint.save(two, 12, state(12))
    assert_is(12, load(two))


def test_unfinished_one_is_ignored_and_cleared_away(two):
    shutil.copytree(two / "step-00000012", two / "step-00000020.tmp")
    assert_is(12, load(two))
    checkpoint.save(two, 21, state(21))
    assert sorted(p.name for p in two.iterdir()) == ["step-00000012", "step-00000021"]


def test_two_are_kept(tmp_path):
    for step in (5, 50, 500, 5000):
        checkpoint.save(tmp_path, step, state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000500", "step-00005000"]


def test_full_disk_is_a_work_error_and_leaves_the_older_ones(two):
    """A limit on the size of a file makes the kernel refuse the write, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(
            WorkError, match=r"could not write the checkpoint .*step-00000020: .*large"
        ):
            checkpoint.save(two, 20, state(20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in two.iterdir()) == ["step-00000003", "step-00000012"]
    assert_is(12, load(two))


def test_directory_that_cannot_be_made_is_a_work_error(tmp_path):
    (tmp_path / "c").write_text("a file")
    with pytest.raises(WorkError, match="could not write the checkpoint"):
        checkpoint.save(tmp_path / "c", 1, state(1))


def test_place_that_is_taken_is_a_work_error_and_leaves_the_older_ones(two):
    (two / "step-00000020").write_text("a file")
    with pytest.raises(WorkError, match="could not write the checkpoint"):
        checkpoint.save(two, 20, state(20))
    assert_is(12, load(two))


def test_a_save_outlives_damaged_ones_of_later_steps(two):
    """A run that went back to 3, for 12 is damaged, saves 7: it must not be taken for the oldest of three."""
    checkpoint.save(two, 20, state(20))
    checkpoint.save(two, 16, state(16), keep=3)
    for step in (12, 16, 20):
        found = two / f"step-{step:08d}"
        if found.exists():
            truncate(largest_file(found))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(two, 11, state(11))
        assert_is(11, load(two))
