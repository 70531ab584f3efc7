"""The app's routes."""

from __future__ import annotations

from starlette.routing import Route

from gristmill.serve.web import attachments, conversations, live, votes
from gristmill.serve.web.origin import State


def routes(state: State) -> list[Route]:
    """Everything under `/app`. Refusals are ApiError and RequestError, for the server's handlers."""
    parts = (live, conversations, votes, attachments)
    return [route for part in parts for route in part.routes(state)]
