"""The compiled extension, if this installation has it, and in words why not if it has not."""

from __future__ import annotations

from types import ModuleType

extension: ModuleType | None
why_missing: str

try:
    from gristmill import _native as _module
except ImportError as error:
    extension = None
    why_missing = (
        "the extension gristmill._native was not built; it needs a C++ compiler when installing"
        if getattr(error, "name", "") in ("gristmill._native", "gristmill")
        else f"the extension gristmill._native does not load: {error}"
    )
else:
    extension = _module
    why_missing = ""

has_native = extension is not None
