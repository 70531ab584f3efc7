"""Ctrl-C between two steps instead of inside one, where weights may be half moved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """asked: whether somebody pressed Ctrl-C."""

    asked = False


@contextmanager
def gently() -> Iterator[Stop]:
    """The first Ctrl-C is told to the loop, which ends when its step is whole; the second one ends it at once.

    Only the main thread hears signals; elsewhere nothing is asked.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: Any = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, before)

    if before is signal.default_int_handler:  # what others have put there stays
        signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)
