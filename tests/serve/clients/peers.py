"""Runs a client that lies apart (see packages.txt) in a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = Path(sys.prefix) / "peers/clients"  # `make test` installs them


def run(script: str, home: Path, *arguments: str) -> Any:
    """The JSON that `script`, of this folder, writes to its file. home: where it may keep what it likes."""
    assert PACKAGES.is_dir(), "litellm and lm-eval are not installed: make .venv/.ready-to-test"
    result = home / "result.json"
    apart = {
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_KEY": "none",
        "NO_PROXY": "127.0.0.1",
    }
    program = [sys.executable, str(Path(__file__).parent / script), str(PACKAGES), str(result)]
    environment = {**os.environ, **apart}
    made = subprocess.run(
        [*program, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr[-4000:]
    return json.loads(result.read_text(encoding="utf-8"))
