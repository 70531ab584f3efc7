"""API keys in a file: who may ask, and how much.

One JSON object a line: `{"name", "hash", "created", "requests_per_minute"?, "tokens_per_minute"?, "concurrent"?,
"models"?}`. The file holds sha256 of each key and never the key. A slow hash (bcrypt, argon2) protects passwords,
which people choose and a thief can guess; a key is 256 random bits, which nobody can guess however fast the hash, and
every request pays for it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gristmill.errors import RequestError, nearest
from gristmill.files import lock_file, write_with

PREFIX = "gm-"  # so that scanners of leaked secrets, and people, see what it is

Positive = Annotated[int, Field(gt=0)]
log = logging.getLogger("gristmill.serve")


class Key(BaseModel):
    """One who may ask. A limit that is None does not bind; models: the names it may use, None for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # sha256 of the key, in hex
    created: datetime
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    concurrent: Positive | None = None
    models: tuple[str, ...] | None = None

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


class KeyFile:
    """The keys of a file, read again whenever it changes. An edit that breaks it is logged and changes nothing.

    Raises RequestError, naming the line, when it cannot be read at first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = _signature(path)
        self.keys = read_keys(path)

    def find(self, secret: bytes) -> Key | None:
        """Whose key it is. Takes as long whichever matches, or none."""
        self._refresh()
        digest = hashlib.sha256(secret).hexdigest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.hash, digest):
                found = key
        return found

    def _refresh(self) -> None:
        signature = _signature(self.path)
        if signature == self._seen:
            return
        self._seen = signature  # before reading: what is written meanwhile is seen next time
        try:
            self.keys = read_keys(self.path)
            log.info("%s changed: it holds %d keys now", self.path, len(self.keys))
        except RequestError as error:
            log.error("the keys stay as they were: %s", error)


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read_keys(path: Path) -> list[Key]:
    """The keys of the file, in order. Raises RequestError, naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise RequestError(
            f"there is no key file {path}; `gristmill serve keys add NAME --file {path}` makes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the key file {path} cannot be read: {error}") from None
    keys: list[Key] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            key = Key.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or "the line"
            raise RequestError(f"{path}, line {number}: {field}: {first['msg']}") from None
        if any(key.name == other.name or key.hash == other.hash for other in keys):
            raise RequestError(f"{path}, line {number}: the key {key.name} is there twice")
        keys.append(key)
    return keys


def add_key(path: Path, name: str, **limits: object) -> str:
    """Append a new key to the file, which is made where there is none; the key itself, which nobody can read again.

    limits: fields of `Key`. Raises RequestError for a name that is taken or not a name, and for a limit below 1.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    given = {field: value for field, value in limits.items() if value is not None}
    try:
        key = Key.model_validate(
            {"name": name, "hash": hashlib.sha256(secret.encode()).hexdigest(), **given}
            | {"created": datetime.now(UTC).replace(microsecond=0)}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] == ("name",):
            raise RequestError(
                f"{name!r:.80} is not a name for a key: up to 64 letters, digits and . _ @ - make one"
            ) from None
        raise RequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    with _alone(path):
        keys = read_keys(path) if path.exists() else []
        if any(key.name == name for key in keys):
            raise RequestError(
                f"{path} has a key {name} already; choose another name, or remove it first"
            )
        _write(path, [*keys, key])
    return secret


def remove_key(path: Path, name: str) -> None:
    """Whoever has it is refused from their next request on. Raises RequestError where there is none."""
    with _alone(path):
        keys = read_keys(path)
        rest = [key for key in keys if key.name != name]
        if len(rest) == len(keys):
            hint = nearest(name, [key.name for key in keys])
            raise RequestError(f"{path} has no key {name}.{hint}")
        _write(path, rest)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two who edit at once would each write without the other's change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock_file(lock, lambda holder: f"process {holder} is changing {path}; try again"):
        yield


def _write(path: Path, keys: Iterable[Key]) -> None:
    """For its owner alone, unless it was shared before."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    text = "".join(key.model_dump_json(exclude_none=True) + "\n" for key in keys)

    def write(temporary: Path) -> None:
        temporary.touch(mode=0o600)
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(mode)

    write_with(path, write)
