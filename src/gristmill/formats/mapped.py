"""A file mapped copy-on-write, whose pages can be given back."""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from typing import BinaryIO

# Linux refuses a private writable mapping of more than its memory unless told not to set any aside for copies
# (MAP_NORESERVE, unnamed before Python 3.12); 0x4000 on x86, Arm and RISC-V.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class MappedFile:
    """The bytes of an open file. Stays mapped as long as this object or a view of it lives.

    The file may be replaced or deleted meanwhile, not truncated or written over: the system ends a process that
    touches a page which is gone.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self._mapping = mmap.mmap(
            file.fileno(),
            self.size,
            flags=mmap.MAP_PRIVATE | _NO_RESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
        # torch and numpy keep the memoryview they are given, not the mapping: it is alive exactly as long as some
        # tensor or array that shares its memory.
        self._views: dict[tuple[int, int], weakref.ref[memoryview]] = {}

    def view(self, offset: int, nbytes: int) -> memoryview:
        """A stretch of the file. Writing to it changes this process's copy of a page, never the file."""
        known = self._views.get((offset, nbytes))
        view = known() if known else None
        if view is None:
            view = memoryview(self._mapping)[offset : offset + nbytes]
            self._views[offset, nbytes] = weakref.ref(view)
        return view

    def release(self, offset: int, nbytes: int) -> None:
        """Give back the memory of a stretch's pages; the next use reads them from the file again.

        For a caller that converts one tensor after another: without this, all it has touched stays resident.
        Does nothing while a `view` of the stretch, or what was made from one, lives. The pages at its two ends,
        shared with its neighbours, stay.
        """
        known = self._views.get((offset, nbytes))
        if known and known() is not None:
            return
        page = mmap.PAGESIZE
        start = -(-offset // page) * page
        length = (offset + nbytes) // page * page - start
        if length > 0:
            # Private pages go whether written to or not; nobody is left to miss what was written.
            self._mapping.madvise(mmap.MADV_DONTNEED, start, length)
