"""A child process that parses pages under a deadline and a memory limit, replaced when it dies.

One per worker: it starts at the first page and takes page after page over pipes. The deadline counts the
child's processor time, so a busy machine does not change what is extracted; wall time is only a backstop.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.data.extract.child import receive, send
from gristmill.errors import WorkError

DEADLINE_SECONDS = 5.0
MEMORY_BYTES = 1 << 30
_WALL_FACTOR = 12
_START_SECONDS = 120.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Failure:
    """reason: extraction_timeout, extraction_memory or extraction_failed; detail: the numbers."""

    reason: str
    detail: dict[str, Any]


class Watchdog:
    """deadline_seconds: of processor time for each message. memory_bytes: of the child in all.
    target: the module whose `main(memory_bytes, wall_seconds)` is the child."""

    def __init__(
        self,
        deadline_seconds: float = DEADLINE_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        target: str = "gristmill.data.extract.child",
    ) -> None:
        self.deadline_seconds = deadline_seconds
        self.memory_bytes = memory_bytes
        self.starts = 0
        self._target = target
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was still in it was for the dead

    def ask(self, *message: Any) -> tuple[Any, ...] | Failure:
        """The child's answer; after a Failure other than a plain exception the child is gone and the next
        call starts a fresh one."""
        child = self._ready()
        spent = _cpu_seconds(child.pid)
        try:
            assert child.stdin is not None
            send(child.stdin, message)
        except BrokenPipeError:
            return self._died(child)
        answer = self._await(child, spent, self.deadline_seconds)
        if isinstance(answer, tuple) and answer[0] == "error":
            if answer[1] == "extraction_memory":
                self.close()  # its heap is in pieces
            return Failure(answer[1], {"error": answer[2]})
        return answer

    def rest(self) -> None:
        """Between pages: replace a child that has grown, before its size is held against a page."""
        if self._child is not None and _resident_bytes(self._child.pid) > self.memory_bytes // 2:
            self.close()

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._owner == os.getpid():
            return self._child
        wall = int(self.deadline_seconds * _WALL_FACTOR) + 2
        program = f"from {self._target} import main; main({self.memory_bytes}, {wall})"
        self._child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._owner = os.getpid()
        self.starts += 1
        answer = self._await(self._child, 0.0, _START_SECONDS)
        if answer != ("ready",):
            self.close()
            raise WorkError(
                f"the extraction process did not start ({answer}). "
                "Is the [data] extra installed, and is there memory left?"
            )
        return self._child

    def _await(
        self, child: subprocess.Popen[bytes], spent: float, deadline: float
    ) -> tuple[Any, ...] | Failure:
        """The answer, or what stopped it. Reading the frame itself is quick once its first byte is here."""
        assert child.stdout is not None
        began = time.monotonic()
        while not select.select([child.stdout], [], [], _LOOK_SECONDS)[0]:
            used = _cpu_seconds(child.pid) - spent
            wall = time.monotonic() - began
            if used > deadline or wall > deadline * _WALL_FACTOR:
                self.close()
                return Failure("extraction_timeout", {"limit_seconds": deadline})
            resident = _resident_bytes(child.pid)
            if resident > self.memory_bytes:
                self.close()
                return Failure("extraction_memory", {"limit_bytes": self.memory_bytes})
        try:
            return receive(child.stdout) or self._died(child)
        except (EOFError, ValueError, IndexError, AttributeError, pickle.UnpicklingError):
            return self._died(child)

    def _died(self, child: subprocess.Popen[bytes]) -> Failure:
        """Ended by itself: a crash in native code, the alarm, or the system's want of memory."""
        try:
            code = child.wait(5)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        if code == -signal.SIGALRM:
            return Failure("extraction_timeout", {"limit_seconds": self.deadline_seconds})
        reason = "extraction_memory" if code == -signal.SIGKILL else "extraction_failed"
        return Failure(reason, {"child": name})


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; wall time where /proc is missing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic() if not Path("/proc/self/stat").exists() else 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
