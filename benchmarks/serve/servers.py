"""Servers under load: ours and vLLM's, each in a process of its own on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.engine import side_vllm

NAME = "model"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@contextmanager
def ours(model: Path) -> Iterator[tuple[str, int]]:
    """URL and process id."""
    port = free_port()
    code = "from gristmill.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", f"{NAME}={model}", "--port", str(port)]
    with _started([*command, "--no-store"], port, {}) as process:
        yield f"http://127.0.0.1:{port}", process


@contextmanager
def vllm(model: Path, dtype: str = "float32") -> Iterator[tuple[str, int]]:
    port = free_port()
    command = [
        str(side_vllm.HOME / "bin/python"),
        "-m",
        "vllm.entrypoints.openai.api_server",
        *("--model", str(model), "--served-model-name", NAME, "--dtype", dtype),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"),
        *("--max-num-seqs", "256", "--disable-log-stats"),
    ]
    with _started(command, port, side_vllm.ENVIRONMENT) as process:
        yield f"http://127.0.0.1:{port}", process


@contextmanager
def _started(command: Sequence[str], port: int, more: Mapping[str, str]) -> Iterator[int]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **more}, start_new_session=True
        )
        try:
            until = time.monotonic() + 300
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    told = log.read()[-3000:].decode(errors="replace")
                    raise SystemExit(f"{command[0]} did not start:\n{told}")
                time.sleep(0.2)
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _answers(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def resident(process: int) -> int:
    """Bytes that a process holds."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
