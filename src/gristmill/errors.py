"""Errors that are written for the person who reads them, and the exit code each one means."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# What is wrong with a place that was named, rather than with the disk or the machine.
_OF_THE_PLACE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


class GristmillError(Exception):
    """Base of every error raised on purpose. `str(error)` is the whole message: what, where, cure."""

    exit_code = 1


class RequestError(GristmillError):
    """What was asked for is wrong (a key, a path, a value). Nothing was done. Exit code 2, HTTP 4xx."""

    exit_code = 2


class WorkError(GristmillError):
    """The request was fine and the work failed (disk full, diverged, corrupt checkpoint). Exit code 1."""

    exit_code = 1


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint that names the closest of `options`: ' Did you mean "x"?', or '' when none is close."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else ""


def refused_by_system(error: OSError) -> GristmillError:
    """What the operating system refused, in one line: RequestError about a place that was named (it may
    not be written, it is a file), WorkError about everything else (the disk is full)."""
    what = error.strerror or str(error) or type(error).__name__
    where = f": {error.filename}" if error.filename else ""
    kind = RequestError if error.errno in _OF_THE_PLACE else WorkError
    return kind(f"the system refused: {what}{where}")


def out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch was refused memory; torch says so in a RuntimeError's words on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def missing_extra(module: str, extra: str) -> RequestError:
    """The error for an optional dependency that is not installed, naming the extra that brings it."""
    return RequestError(
        f"{module} is not installed. It belongs to the [{extra}] extra: "
        f"pip install -c constraints.txt 'gristmill[{extra}]'"
    )


@contextmanager
def needing(extra: str, *packages: str) -> Iterator[None]:
    """Imports in it that fail for want of one of an extra's packages raise `missing_extra`; others as ever."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in packages:
            raise missing_extra(package, extra) from None
        raise
