"""That an SDK's own types declare all that a response holds: the SDKs themselves let anything pass."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from pydantic import BaseModel

T = TypeVar("T")


def declared(value: T, ours: Collection[str] = ()) -> T:
    """`value`, with no field, at any depth, that is neither declared nor one of `ours`."""
    if isinstance(value, BaseModel):
        extra = set(value.model_extra or ()) - set(ours)
        assert not extra, f"{type(value).__name__} has no {extra}"
        for name in type(value).model_fields:
            declared(getattr(value, name), ours)
    elif isinstance(value, list):
        for each in value:
            declared(each, ours)
    return value
