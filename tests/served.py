"""A real server on loopback: uvicorn on a thread, with the engine's own thread behind it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from gristmill import serve
from gristmill.engine import Engine
from gristmill.retrieval import Index


def served(
    engine: Engine, index: Index | None = None, examples: tuple[str, ...] = ()
) -> AbstractContextManager[str]:
    """The server's URL while it runs."""
    return serve.served(serve.build_app([serve.Served("tiny", engine, index, examples)]))
