from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gristmill.cli.main import main
from tests.tiny_model import taught_model


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def gristmill(capsys, monkeypatch) -> Callable[..., Result]:
    """Run the program in this process with the given arguments and standard input (text or bytes)."""

    def call(*arguments: object, stdin: str | bytes = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["gristmill", *map(str, arguments)])
        if isinstance(stdin, str):
            stdin = stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def taught(tmp_path_factory) -> Path:
    """A directory with the model that knows three answers by heart."""
    path = tmp_path_factory.mktemp("models") / "taught"
    taught_model().save(path)
    return path
