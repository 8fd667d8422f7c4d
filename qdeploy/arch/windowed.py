"""Windows of an image: cutting them, putting them together, and who sees whom in shifted ones (Swin)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdeploy.arch.builder import Builder
from qdeploy.ir.tensor import Array

_UNSEEN = -100.0
"""Added to the score of tokens that are no neighbours, as transformers does."""
_END = 1 << 31


@dataclass(frozen=True)
class Windows:
    """Square windows of an image.

    Attributes:
        rows: Of the image; likewise columns.
        columns: Of the image.
        size: Rows and columns of a window.
        shift: By how many places the image is rolled before windows are cut.
    """

    rows: int
    columns: int
    size: int
    shift: int

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns that windows divide."""
        return -(-self.rows // self.size) * self.size, -(-self.columns // self.size) * self.size

    @property
    def count(self) -> int:
        """Windows of an image."""
        return self.padded[0] // self.size * (self.padded[1] // self.size)

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.size * self.size

    def cut(self, add: Builder, x: str, width: int, name: str) -> str:
        """[B, rows * columns, width] -> [B, windows, tokens, width]."""
        (rows, columns), size = self.padded, self.size
        image = add.node("Reshape", x, name=f"{name}.image", shape=[0, self.rows, self.columns, width])
        if (rows, columns) != (self.rows, self.columns):
            pads = [0, 0, 0, 0, 0, rows - self.rows, columns - self.columns, 0]
            image = add.node("Pad", image, add.integers(f"{name}.pads", pads), name=f"{name}.padded")
        image = self._rolled(add, image, self.shift, name)
        shape = [0, rows // size, size, columns // size, size * width]
        split = add.node("Reshape", image, name=f"{name}.split", shape=shape)
        ordered = add.node("Transpose", split, name=f"{name}.ordered", perm=[0, 1, 3, 2, 4])
        return add.node("Reshape", ordered, name=name, shape=[0, self.count, self.tokens, width])

    def joined(self, add: Builder, x: str, width: int, name: str) -> str:
        """The way back."""
        (rows, columns), size = self.padded, self.size
        shape = [0, rows // size, columns // size, size, size * width]
        split = add.node("Reshape", x, name=f"{name}.split", shape=shape)
        ordered = add.node("Transpose", split, name=f"{name}.ordered", perm=[0, 1, 3, 2, 4])
        image = add.node("Reshape", ordered, name=f"{name}.whole", shape=[0, rows, columns, width])
        image = self._rolled(add, image, -self.shift, name)
        if (rows, columns) != (self.rows, self.columns):
            ends = [self.rows, self.columns]
            image = add.node("Slice", image, name=f"{name}.cropped", starts=[0, 0], ends=ends, axes=[1, 2])
        return add.node("Reshape", image, name=name, shape=[0, self.rows * self.columns, width])

    def _rolled(self, add: Builder, x: str, by: int, name: str) -> str:
        """Every row and column `by` places towards the beginning; what falls out comes in at the end."""
        for axis, label in ((1, "rows"), (2, "columns")) if by else ():
            first = add.node("Slice", x, name=f"{name}.{label}.first", starts=[by], ends=[_END], axes=[axis])
            last = add.node("Slice", x, name=f"{name}.{label}.last", starts=[0], ends=[by], axes=[axis])
            x = add.node("Concat", first, last, name=f"{name}.{label}", axis=axis)
        return x

    def bias(self, add: Builder, table: str, heads: int, name: str) -> str:
        """Of every query and key [heads, tokens, tokens], from a table with a row per distance."""
        stored = add.weight(table, ((2 * self.size - 1) ** 2, heads), "window_size, num_heads")
        place = np.stack(np.meshgrid(np.arange(self.size), np.arange(self.size), indexing="ij")).reshape(2, -1)
        distance = place[:, :, None] - place[:, None, :] + self.size - 1  # [2, tokens, tokens]
        rows = distance[0] * (2 * self.size - 1) + distance[1]
        flat = add.node(
            "Gather",
            stored,
            add.integers(f"{name}.distances", rows.reshape(-1).tolist()),
            axis=0,
            name=f"{name}.of_distance",
        )
        shape = [self.tokens, self.tokens, heads]
        square = add.node("Reshape", flat, name=f"{name}.distance", shape=shape)
        return add.node("Transpose", square, name=f"{name}.bias", perm=[2, 0, 1])

    def mask(self, add: Builder, name: str) -> str:
        """What is added to scores [windows, 1, tokens, tokens]: tokens of other regions are not seen."""
        rows, columns = (self._regions(extent) for extent in self.padded)
        size, (height, width) = self.size, self.padded
        region = (rows[:, None] * 3 + columns[None, :]).reshape(height // size, size, width // size, size)
        of_token = region.transpose(0, 2, 1, 3).reshape(self.count, 1, self.tokens)
        other = of_token[:, :, :, None] != of_token[:, :, None, :]
        return add.constant(name, np.where(other, np.float32(_UNSEEN), np.float32(0)))

    def _regions(self, extent: int) -> Array:
        """Of each place of a rolled axis, which of the three runs it belongs to that are neighbours."""
        place = np.arange(extent)
        return (place >= extent - self.size).astype(np.int64) + (place >= extent - self.shift)
