"""The compiled loops (runtime/fit/fit.h), rows shared out over threads; numpy's where they were not built.

All take the same arguments as those of oracle.py and write in place. A thread has rows of its own, so that results do
not depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import Array, Float32
from qdeploy.quantize.ladder import oracle
from qdeploy.quantize.ladder.metric import Metric

UInt8 = npt.NDArray[np.uint8]
_PANEL = 64
"""Rows that the loops take together."""


@cache
def _library() -> Any:
    """The extension's (ffi, lib); None where it was not built."""
    try:
        from qdeploy._fit import ffi, lib
    except ImportError:
        return None
    return ffi, lib


def is_compiled() -> bool:
    """Whether the compiled loops are here."""
    return _library() is not None


def instruction_set() -> str:
    """What the compiled loops use here; "numpy" where there are none."""
    library = _library()
    return "numpy" if library is None else library[0].string(library[1].qdf_isa()).decode()


class Loops:
    """The loops over one metric.

    Args:
        metric: Of the inputs.
        threads: How many share the rows; 0: one per core.
    """

    def __init__(self, metric: Metric, threads: int = 0) -> None:
        self.metric, self._threads = metric, threads or os.cpu_count() or 1
        self._library = _library()
        self._factor: list[Float32] = []
        self._moment: list[Float32] = []

    def round_rows(self, targets: Sequence[Float32], scales: Float32, codes: UInt8, weights: Float32) -> None:
        """One pass over the columns; see `oracle.round_rows`."""
        metric = self.metric
        if self._library is None:
            oracle.round_rows(targets, scales, codes, metric, weights)
            return
        starts = range(0, metric.columns, metric.block)
        self._factor = self._factor or [
            self._packed(metric.factor, metric.block, at, at + metric.block) for at in starts
        ]
        ffi, lib = self._library
        factor, packed = _pointer(ffi, metric.factor, "float"), _pointers(ffi, self._factor)
        order = _pointer(ffi, metric.order, "int32_t")
        self._share(
            targets, scales, codes, weights, lambda rows: lib.qdf_round(rows, metric.block, factor, packed, order)
        )

    def descend(self, targets: Sequence[Float32], scales: Float32, codes: UInt8, weights: Float32, sweeps: int) -> None:
        """Coordinate descent on codes and scales; see `oracle.descend`."""
        metric = self.metric
        if self._library is None:
            oracle.descend(targets, scales, codes, metric, weights, sweeps)
            return
        ffi, lib = self._library
        moment, packed = _pointer(ffi, metric.moment, "float"), _pointers(ffi, self._moments())
        self._share(
            targets, scales, codes, weights, lambda rows: lib.qdf_descend(rows, moment, packed, sweeps, ffi.NULL)
        )

    def refit(self, targets: Sequence[Float32], scales: Float32, codes: UInt8, ridge: float = 1e-3) -> None:
        """The best scales for given codes; see `oracle.refit`."""
        if self._library is None:
            oracle.refit(targets, scales, codes, self.metric, ridge)
            return
        ffi, lib = self._library
        packed, weights = _pointers(ffi, self._moments()), np.ones(len(targets), np.float32)
        self._share(targets, scales, codes, weights, lambda rows: lib.qdf_refit(rows, packed, ridge))

    def _moments(self) -> list[Float32]:
        metric = self.metric
        starts = range(0, metric.columns, metric.group)
        self._moment = self._moment or [self._packed(metric.moment, metric.group, at, 0) for at in starts]
        return self._moment

    def _packed(self, matrix: Float32, block: int, at: int, first: int) -> Float32:
        ffi, lib = self._library
        columns = len(matrix)
        out = np.zeros(max(1, lib.qdf_packed(columns, block, first) if first < columns else 0), np.float32)
        if first < columns:
            lib.qdf_pack(columns, block, at, first, _pointer(ffi, matrix, "float"), _pointer(ffi, out, "float"))
        return out

    def _share(
        self,
        targets: Sequence[Float32],
        scales: Float32,
        codes: UInt8,
        weights: Float32,
        run: Callable[[Any], int],
    ) -> None:
        """Runs a loop on panels of rows, several at a time."""
        ffi, _ = self._library
        rows = len(codes)
        step = max(_PANEL, -(-rows // (4 * self._threads * _PANEL)) * _PANEL)

        def part(start: int) -> int:
            own = slice(start, start + step)
            several = _pointers(ffi, [target[own] for target in targets])
            described = ffi.new("qdf_rows *")
            described.rows, described.columns = len(codes[own]), codes.shape[1]
            described.group, described.levels = self.metric.group, len(targets)
            described.targets, described.weights = several, _pointer(ffi, weights, "float")
            described.scales, described.codes = (
                _pointer(ffi, scales[own], "float"),
                _pointer(ffi, codes[own], "uint8_t"),
            )
            return run(described)

        with ThreadPoolExecutor(self._threads) as pool:
            if any(pool.map(part, range(0, rows, step))):
                raise MemoryError("no memory for the loops that fit a ladder")


def _pointer(ffi: Any, array: Array, kind: str) -> Any:
    return ffi.cast(f"{kind} *", ffi.from_buffer(array))


def _pointers(ffi: Any, arrays: Sequence[Array]) -> Any:
    return ffi.new("float *[]", [_pointer(ffi, array, "float") for array in arrays])
