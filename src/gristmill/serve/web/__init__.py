"""What the app at `/` needs beside `/v1`: conversations, votes, attachments, and what is loaded. Same origin only."""

from gristmill.serve.web.app import routes
from gristmill.serve.web.attached import Attachments, passages_for
from gristmill.serve.web.origin import State

__all__ = ["Attachments", "State", "passages_for", "routes"]
