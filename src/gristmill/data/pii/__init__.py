"""Private data in texts: where it is, and stable stand-ins for it."""

from gristmill.data.pii.clear import clear
from gristmill.data.pii.find import find
from gristmill.data.pii.found import KINDS, Found
from gristmill.data.pii.replace import apply

__all__ = ["KINDS", "Found", "apply", "clear", "find"]
