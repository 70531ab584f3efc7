"""A real server on loopback: uvicorn on a thread, with the engine's own thread behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from gristmill.engine import Engine
from gristmill.retrieval import Index
from gristmill.serve import address_of, build_app, listen


@contextmanager
def served(
    engine: Engine, index: Index | None = None, examples: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yields the server's URL while it runs."""
    listener = listen("127.0.0.1", 0)
    app = build_app(engine, "tiny", index, examples)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
