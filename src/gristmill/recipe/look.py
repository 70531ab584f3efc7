"""Reading nested metrics that may lack any part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def look(value: Any, *keys: str) -> Any:
    """value[k0][k1]…, or None when a part is not there."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value
