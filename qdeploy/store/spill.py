"""Results that took long to make and are too large to hold: kept in a file without a name while they are needed.

The file lies in the system's folder for temporary files (TMPDIR moves it) and is gone with the process, however that
ends.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import OutputError
from qdeploy.store.output import write_all


class Spill:
    """An anonymous file that arrays are appended to; safe to use from several threads."""

    def __init__(self) -> None:
        self._descriptor, self._size = -1, 0
        self._lock = threading.Lock()

    def keep(self, array: npt.NDArray[Any]) -> SpilledRows:
        """Appends an array; returns its rows, to be read by range.

        Raises:
            OutputError: The disk is full.
        """
        data = np.ascontiguousarray(array)
        with self._lock:
            if self._descriptor < 0:
                self._descriptor = _anonymous()
                weakref.finalize(self, os.close, self._descriptor)
            begin, self._size = self._size, self._size + data.nbytes
        try:
            write_all(self._descriptor, data.reshape(-1).view(np.uint8).data, begin)
        except OSError as error:
            raise OutputError(
                f"cannot keep a temporary result: {error.strerror}",
                where=tempfile.gettempdir(),
                todo="Free some space, or name another folder in TMPDIR.",
            ) from error
        return SpilledRows(self, begin, data.shape, data.dtype)

    def read_into(self, begin: int, out: npt.NDArray[np.uint8]) -> None:
        """Fills a contiguous byte array from `begin`, which has been written."""
        done, view = 0, out.data
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], begin + done)
            if not count:
                raise OutputError("a temporary file became shorter", where=tempfile.gettempdir())
            done += count


@dataclass(frozen=True)
class SpilledRows:
    """Rows of an array in a spill. Satisfies `Rows`."""

    spill: Spill
    begin: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Returns rows [start, stop)."""
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        out = np.empty((stop - start) * row, np.uint8)
        self.spill.read_into(self.begin + start * row, out)
        return out.view(self.dtype).reshape(stop - start, *self.shape[1:])


def _anonymous() -> int:
    descriptor, path = tempfile.mkstemp(prefix="qdeploy-")
    os.unlink(path)
    return descriptor
