"""pydantic's validation errors, said to the person who wrote the recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from gristmill.errors import nearest

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text in quotes",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a table",
    "model": "a table",
    "path": "a path",
}


def complaints(
    error: ValidationError, config: type[BaseModel], where: Callable[[tuple[str, ...]], str]
) -> list[str]:
    """One line for each thing that is wrong: where, which key, what it must be and what it is.

    `where(key path within the stage's table)` says the file and line, or the `--set`.
    """
    lines = []
    for item in error.errors(include_url=False):
        # Members of a union add their own names to the path; they are no keys of the recipe.
        path = _keys(item["loc"], config)
        lines.append(f"{where(path)}{_what(dict(item), path, config)}")
    return list(dict.fromkeys(lines))


def _keys(loc: tuple[int | str, ...], config: type[BaseModel]) -> tuple[str, ...]:
    keys: list[str] = []
    inside: type[BaseModel] | None = config
    for part in loc:
        if isinstance(part, int):
            keys.append(str(part))
            continue
        if inside is None:
            break
        keys.append(part)
        inside = _table(inside, part)
    return tuple(keys)


def _what(item: dict[str, Any], path: tuple[str, ...], config: type[BaseModel]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    key = ".".join(path)
    if kind == "extra_forbidden":
        return f'there is no key "{path[-1]}".{nearest(path[-1], _options(config, path[:-1]))}'
    if kind == "missing":
        return f"{key} is missing"
    given = shown(item["input"])
    if kind in ("literal_error", "enum"):
        return f"{key} must be {context['expected']}, not {given}"
    if kind == "value_error":
        return f"{key + ': ' if key else ''}{context['error']}"
    stem = kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    if stem in _WANTED:
        return f"{key} must be {_WANTED[stem]}, not {given}"
    message = item["msg"].removeprefix("Input should ")
    return f"{key} should {message}, not {given}"


def _options(config: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """Keys that the table at `path` knows."""
    inside: type[BaseModel] | None = config
    for part in path:
        inside = _table(inside, part) if inside else None
    return list(inside.model_fields) if inside else []


def _table(config: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The settings of the table that `key` is, when it is one."""
    field = config.model_fields.get(key)
    annotation: Any = field.annotation if field else None
    is_table = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_table else None


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
