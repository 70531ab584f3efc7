"""Command blocks in Markdown: found, checked for a mark, run by bash.

A block of ```bash is marked on the line before it:

    <!-- run -->                  its commands are run and must succeed
    <!-- run: exit 2 -->          its last command must end with that exit code
    <!-- not run: reason -->      it is not, for that reason
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!-- (run|run: exit (?P<code>\d+)|not run: (?P<reason>\S.*)) -->$")


@dataclass(frozen=True)
class Block:
    """One block of commands. exit_code None: not run, for `reason`."""

    place: str
    commands: str
    exit_code: int | None
    reason: str = ""


def find_blocks(text: str, name: str) -> list[Block]:
    """The ```bash blocks of a page. Raises ValueError, with the line, for one without a mark."""
    blocks: list[Block] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at].strip())
        if not fence:
            at += 1
            continue
        start = at
        at += 1
        while at < len(lines) and lines[at].strip() != "```":
            at += 1
        if fence[1] == "bash":
            place = f"{name}:{start + 1}"
            mark = _MARK.match(lines[start - 1].strip()) if start else None
            if mark is None:
                raise ValueError(f"{place}: a bash block needs <!-- run --> before it, or why not")
            code = None if mark["reason"] else int(mark["code"] or 0)
            commands = "\n".join(lines[start + 1 : at])
            blocks.append(Block(place, commands, code, mark["reason"] or ""))
        at += 1
    return blocks


def run_block(block: Block, directory: Path, timeout: float = 600) -> str:
    """Run it in `directory`, its home too, with this Python's programs first. Returns what it printed.

    Raises AssertionError, with place and output, when it ends otherwise than marked.
    """
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(directory),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.commands],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == block.exit_code, (
        f"{block.place} ended with exit code {done.returncode}, expected was {block.exit_code}:\n"
        f"{block.commands}\n{'-' * 60}\n{done.stdout[-4000:]}"
    )
    return done.stdout
