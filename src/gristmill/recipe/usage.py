"""Peak memory of a stretch of work, this process and its children together; and what the machine has."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import threading
from pathlib import Path

from gristmill.machine import peak_memory

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SECONDS_BETWEEN_SAMPLES = 0.2


class PeakMemory:
    """`with PeakMemory() as peak: …`, then `peak.bytes`.

    On Linux: resident memory of this process and its children, sampled five times a second, and the
    kernel's own high-water mark of this process, reset at the start. Elsewhere the process's
    high-water mark since it started, which the kernel does not let us reset.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        _return_freed_memory()
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.bytes = max(self.bytes, peak_memory())

    def _sample(self) -> None:
        while True:
            self.bytes = max(self.bytes, _resident_now(os.getpid()))
            if self._stop.wait(_SECONDS_BETWEEN_SAMPLES):
                return


def _resident_now(pid: int) -> int:
    """Resident bytes of a process and its descendants, less the shared pages of the descendants."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    own = int(resident) - (int(shared) if pid != os.getpid() else 0)
    total = own * _PAGE
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            total += sum(_resident_now(int(child)) for child in children.read_text().split())
    return total


def _return_freed_memory() -> None:
    """Give freed heap back to the kernel: one stage's peak is not the next one's."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def machine_memory() -> int:
    """Bytes of memory that this process may use at most: the machine's, or its control group's limit."""
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def free_disk(path: Path) -> int:
    """Free bytes where `path` is or would be made."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free
