"""The ledger of the proof: a source tensor, and which part of it has been shown to come back byte for byte.

A buffer that is a source tensor's own bytes is proven by being read. A buffer in another order is packed back as it is
read, and compared: the first pass over the data is at the same time its proof. What does not come back (padding that
the canonical writer would leave zero, codes that no encoder makes) is kept as residue, byte by byte.
"""

from __future__ import annotations

import math
import threading
from bisect import insort
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import ProofError
from qdeploy.store.storage import element_bytes

RESIDUE_SHARE = 0.01
"""Up to this share of a tensor's bytes is kept as residue; beyond it only the values are promised."""
_RESIDUE_LEAST = 1024


class Origin:
    """One tensor of a source file.

    Attributes:
        file: Relative name of the file.
        name: The tensor's name in it.
        dtype: Storage type of the elements (for block formats the elements are bytes: U8).
        shape: Of the stored array; for block formats [rows, bytes per row].
        axis: The axis along which it is read in slabs.
        kind: What the file calls its type, where that is not a storage type ("Q4_K").
        begin: Offset of its first byte in the file.
        values_only: More bytes than a residue may hold did not come back: the codes are exact, the padding is not kept.
    """

    def __init__(
        self, file: str, name: str, dtype: str, shape: tuple[int, ...], axis: int = 0, kind: str = "", begin: int = 0
    ) -> None:
        self.file, self.name, self.dtype, self.shape, self.axis, self.begin = file, name, dtype, shape, axis, begin
        self.kind = kind or dtype
        self.values_only = False
        self._ranges: list[tuple[int, int]] = []
        self._residue: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * element_bytes(self.dtype)

    @property
    def extent(self) -> int:
        """Number of units along the axis of reading."""
        return self.shape[self.axis] if self.shape else 1

    @property
    def proven(self) -> bool:
        """Whether every byte has been shown to come back."""
        with self._lock:
            return self.nbytes == 0 or self._ranges == [(0, self.extent)]

    def state(self) -> dict[str, Any]:
        """What is known, as JSON: kept beside a finished shard, so that a resumed run need not prove it again."""
        with self._lock:
            residue = sorted(self._residue.items())
            return {"ranges": [list(r) for r in self._ranges], "residue": residue, "values_only": self.values_only}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        with self._lock:
            self._ranges = [(low, high) for low, high in state["ranges"]]
            self._residue = dict(state["residue"])
            self.values_only = state["values_only"]

    def covers(self, start: int, stop: int) -> bool:
        """Whether units [start, stop) are proven already."""
        with self._lock:
            return any(low <= start and stop <= high for low, high in self._ranges)

    def residue(self) -> npt.NDArray[Any]:
        """The bytes that do not come back: [(offset u64, xor u8)], sorted by offset."""
        with self._lock:
            return np.array(sorted(self._residue.items()), dtype=[("offset", "<u8"), ("xor", "u1")])

    def prove_verbatim(self, start: int, stop: int) -> None:
        """Notes units that are kept as they are."""
        self._note(start, stop)

    def prove(self, start: int, stop: int, raw: npt.NDArray[Any], back: npt.NDArray[Any]) -> None:
        """Compares a slab with what packing gave back, and notes it.

        Args:
            start: First unit along `axis`.
            stop: One past the last.
            raw: The slab of the source.
            back: The same slab, unpacked and packed again; any memory order.

        Raises:
            ProofError: The shapes differ: the writer is not this tensor's.
        """
        if raw.shape != back.shape:
            raise ProofError(
                "packing gave back another shape",
                where=f"{self.file}: {self.name}",
                found=back.shape,
                allowed=str(raw.shape),
            )
        if not np.array_equal(raw.view(f"u{raw.itemsize}"), back.view(f"u{back.itemsize}")):
            self._differ(start, np.ascontiguousarray(raw), np.ascontiguousarray(back))
        self._note(start, stop)

    def _differ(self, start: int, raw: npt.NDArray[Any], back: npt.NDArray[Any]) -> None:
        xor = raw.view(np.uint8) ^ back.view(np.uint8)  # [..., last * itemsize]
        places = np.nonzero(xor)
        shape = (*self.shape[:-1], self.shape[-1] * raw.itemsize)
        shift = start * raw.itemsize if self.axis == len(self.shape) - 1 else start
        index = tuple(p + shift if i == self.axis else p for i, p in enumerate(places))
        offsets = np.ravel_multi_index(index, shape)
        with self._lock:
            if not self.values_only:
                self._residue.update(zip(offsets.tolist(), xor[places].tolist(), strict=True))
            if len(self._residue) > max(_RESIDUE_LEAST, RESIDUE_SHARE * self.nbytes):
                self.values_only = True
                self._residue.clear()

    def _note(self, start: int, stop: int) -> None:
        with self._lock:
            insort(self._ranges, (start, stop))
            merged = [self._ranges[0]]
            for low, high in self._ranges[1:]:
                if low <= merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
                else:
                    merged.append((low, high))
            self._ranges = merged
