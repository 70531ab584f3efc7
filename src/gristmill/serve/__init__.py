"""The HTTP server: an OpenAI-compatible chat endpoint and a chat page, on one engine thread."""

from gristmill.serve.app import build_app
from gristmill.serve.run import address_of, listen, serve, served

__all__ = ["address_of", "build_app", "listen", "serve", "served"]
