"""The process in which pages are parsed: it may hang, swell or crash, and nothing else is lost.

Frames on its pipes: 8 bytes of length (big-endian), then pickle. In: ("page", html, charset) or ("careful",).
Out: ("ready",), ("cheap", Cheap, encoding), ("text", text, method), ("error", reason, message).
`watchdog` runs `main` in a fresh interpreter.
"""

from __future__ import annotations

import pickle
import signal
import struct
import sys
from pathlib import Path
from typing import IO, Any

_MAX_FRAME_BYTES = 1 << 30


def send(pipe: IO[bytes], message: tuple[Any, ...]) -> None:
    data = pickle.dumps(message, protocol=5)
    pipe.write(struct.pack(">Q", len(data)) + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[Any, ...] | None:
    """The next message, or None at the end of the pipe. Raises when what comes is no message."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    size = struct.unpack(">Q", head)[0]
    if size > _MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes")
    return pickle.loads(pipe.read(size))


def main(memory_bytes: int, wall_seconds: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; the pipe's end stops us
    _prefer_as_victim()
    inbox, outbox = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not break the frames
    from gristmill.data.extract.careful import careful, load
    from gristmill.data.extract.cheap import cheap
    from gristmill.data.extract.decoding import decode_page

    load()
    _limit_memory(memory_bytes)
    send(outbox, ("ready",))
    html = quick = ""
    while message := receive(inbox):
        # The default action ends the process even inside native code, and also when the parent is gone.
        signal.alarm(wall_seconds)
        try:
            if message[0] == "page":
                html, encoding = decode_page(message[1], message[2])
                facts = cheap(html)
                quick = facts.text
                answer = ("cheap", facts, encoding)
            else:
                answer = ("text", *careful(html, quick))
        except MemoryError:
            answer = ("error", "extraction_memory", f"over {memory_bytes} bytes")
        except Exception as error:  # whatever a parser makes of a page is that page's fate
            answer = ("error", "extraction_failed", f"{type(error).__name__}: {error}"[:300])
        signal.alarm(0)
        send(outbox, answer)


def _prefer_as_victim() -> None:
    """When memory runs out, this process goes before any other."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return  # no such file (not Linux), or not allowed: the limit below still holds


def _limit_memory(memory_bytes: int) -> None:
    """Refuse allocations beyond the limit; the parent looks at resident memory as well."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
