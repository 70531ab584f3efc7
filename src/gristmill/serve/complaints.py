"""What pydantic has against a body, as a person would say it: the field by its path, and what it must be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from reprlib import Repr
from typing import Any

from pydantic import ValidationError

from gristmill.serve.errors import FieldError

_MISSING = {"missing", "union_tag_not_found"}
_TOLD = {
    "missing": "must be given",
    "extra_forbidden": "is no field that this server knows; leave it out",
    "too_short": "must have at least {min_length} of them",
    "too_long": "must have at most {max_length} of them",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "none_required": "must be null",
}
_WITHOUT_VALUE = {*_MISSING, "extra_forbidden", "too_short", "string_too_short"}


def field_error(error: ValidationError) -> FieldError:
    """The first complaint, in the path that a person would write."""
    details = error.errors(include_url=False)
    field = details[0]["loc"][:1]
    # Of a union's branches the one that got furthest is the one that was meant.
    furthest = max((d for d in details if d["loc"][:1] == field), key=lambda d: len(d["loc"]))
    path = _path(furthest["loc"])
    there = [d for d in details if _path(d["loc"]) == path]
    # A value of a branch's type tells more than that it is none of the others'.
    first = next((d for d in there if not _of_type(d)), furthest)
    told = _told(first)
    code = "missing" if first["type"] in _MISSING else "invalid_value"
    if _of_type(first):
        code = "invalid_type"
        told = " or ".join(dict.fromkeys(_told(d).removeprefix("must be ") for d in there))
        told = f"must be {told}"
    given = "" if first["type"] in _WITHOUT_VALUE else f", not {_shown(first['input'])}"
    return FieldError(path or "body", f"{told}{given}", code)


def _told(detail: Any) -> str:
    if detail["type"] in ("too_short", "string_too_short") and detail["ctx"]["min_length"] == 1:
        return "must not be empty"
    if detail["type"] in _TOLD:
        return _TOLD[detail["type"]].format_map(detail.get("ctx", {}))
    told = detail["msg"].removeprefix("Value error, ")
    return f"{told[:1].lower()}{told[1:]}"


def _of_type(detail: Any) -> bool:
    return detail["type"].endswith("_type") or detail["type"] in ("int_from_float", "none_required")


def _path(loc: Sequence[int | str]) -> str:
    """pydantic names each branch of a union that it tried in the path, in words that no field has."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif re.fullmatch(r"[a-z0-9_]+", part) and part not in _BRANCHES:
            path += f".{part}" if path else part
    return path


_BRANCHES = {"str", "int", "float", "bool", "list", "dict", "none"}


_SHORT = Repr()  # of a large value the whole would take long
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 4, 20, 20
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


def _shown(value: object) -> str:
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
