"""What a stage of curation is: a callable on record batches that knows what its result depends on."""

from __future__ import annotations

from typing import Any, Protocol


class Stage(Protocol):
    """Takes a `pyarrow.RecordBatch` and gives one of as many rows.

    The same object runs in this process, in a pool of processes and on Ray: it pickles, and makes what it needs
    (models, patterns, a child process) when it is first called. `key` changes when its results would.
    """

    @property
    def key(self) -> str: ...

    def __call__(self, batch: Any) -> Any: ...
