"""Every command in the documentation runs, on a tiny run of the shipped recipe."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import Block, find_blocks, run_block

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    return find_blocks(page.read_text(encoding="utf-8"), name_of(page))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `runs/pyhelp`, made by the recipe at its smallest size, and a folder of notes."""
    directory = tmp_path_factory.mktemp("docs")
    subprocess.run(
        [Path(sys.executable).with_name("gristmill"), "run", "pyhelp", "--set", "size=tiny"],
        cwd=directory,
        check=True,
        timeout=1800,
    )
    shutil.copytree(ROOT / "docs", directory / "notes")
    return directory


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_marked_as_run_or_with_the_reason_why_not(page: Path):
    blocks = blocks_of(page)  # refuses a block without a mark
    fences = re.findall(r"^```bash$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(blocks) == len(fences)
    assert all(block.reason if block.exit_code is None else block.commands for block in blocks)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "<!-- run" in page.read_text(encoding="utf-8")], ids=name_of
)
def test_commands_do_what_the_page_says(page: Path, finished_run: Path):
    for block in blocks_of(page):
        if block.exit_code is not None:
            run_block(block, finished_run)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), f"{name_of(page)}: {target}"


def test_the_runner_itself(tmp_path: Path):
    page = (
        "Text\n\n<!-- run -->\n```bash\necho made > file\n```\n\n<!-- run: exit 3 -->\n```bash\ncat file\n"
        "exit 3\n```\n<!-- not run: no such thing -->\n```bash\nfalse\n```\n```python\nnot bash\n```\n"
    )
    first, second, third = find_blocks(page, "page.md")
    assert run_block(first, tmp_path) == "" and run_block(second, tmp_path) == "made\n"
    assert (third.exit_code, third.reason) == (None, "no such thing")
    for commands in ("false; true", "cat missing | cat", "echo $UNSET_NAME"):
        failing = Block("page.md:1", commands, exit_code=0)
        with pytest.raises(AssertionError, match=r"page\.md:1 ended with exit code 1"):
            run_block(failing, tmp_path)
    with pytest.raises(ValueError, match=r"page\.md:2: a bash block needs"):
        find_blocks("text\n```bash\nls\n```\n", "page.md")
