"""The HTTP server: the APIs of OpenAI and Anthropic, and the web app."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Models": "gristmill.serve.models",
    "Operations": "gristmill.serve.middleware",
    "Served": "gristmill.serve.models",
    "Store": "gristmill.serve.store",
    "address_of": "gristmill.serve.run",
    "build_app": "gristmill.serve.app",
    "listen": "gristmill.serve.run",
    "serve": "gristmill.serve.run",
    "served": "gristmill.serve.run",
}
__all__ = [
    "Models",
    "Operations",
    "Served",
    "Store",
    "address_of",
    "build_app",
    "listen",
    "serve",
    "served",
]

if TYPE_CHECKING:
    from gristmill.serve.app import build_app
    from gristmill.serve.middleware import Operations
    from gristmill.serve.models import Models, Served
    from gristmill.serve.run import address_of, listen, serve, served
    from gristmill.serve.store import Store


def __getattr__(name: str) -> Any:
    """Load on first use: making a key needs no model."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'gristmill.serve' has no attribute {name!r}")
