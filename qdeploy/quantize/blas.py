"""One thread for each product of matrices, so that several run side by side.

OpenBLAS's threads wait for each other by spinning, which on a machine that others use costs many times the work itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_PREFIXES, _SUFFIXES = ("scipy_openblas", "openblas"), ("64_", "", "_64_")


@contextmanager
def single_threaded() -> Iterator[None]:
    """Products inside run on the thread that asks for them, where numpy's library is OpenBLAS."""
    pair = _functions()
    if pair is None:
        yield
        return
    number = int(pair[0]())
    pair[1](1)
    try:
        yield
    finally:
        pair[1](number)


@cache
def _functions() -> tuple[Any, Any] | None:
    """What reads and sets the number of threads; None where there is no such library."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    for path in sorted({line.split()[-1] for line in maps.splitlines() if "openblas" in line}):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                names = (f"{prefix}_get_num_threads{suffix}", f"{prefix}_set_num_threads{suffix}")
                if all(hasattr(library, name) for name in names):
                    return getattr(library, names[0]), getattr(library, names[1])
    return None
