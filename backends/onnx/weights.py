"""Integer codes in blocks: how they lie in the file, and the nodes that use them.

    MatMulNBits   B uint8 [N, blocks, block * bits / 8], codes little end first; scales float32 [N, blocks];
                  zero points uint8 [N, ceil(blocks * bits / 8)], absent where all are 2 ** (bits - 1)
    GatherBlockQuantized   the same bytes, with the columns as one axis: [N, blocks * block * bits / 8]

Codes with one zero point for all are moved up so that the zero point is the one that may be left out, where there is
room.

A form of more than 4 bits can be split into nibbles, code = 16 * high + low and zero = 16 * zero_high + zero_low:

    y = 16 * (x (high - zero_high) s) + x (low - zero_low) s

since the kernel for float activations is fast with 4 bits only. Offsets are added as block sums of the activations:

    x (offset spread over blocks)^T = blocksum(x) offset^T

Where the kernel rounds activations, its error grows with the mean of what they are multiplied by. Codes with offsets
are all positive; so a centre c is given as their zero point, and given back: c * blocksum(x) scale^T. That halves the
error, and rounds no stored number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from qdeploy.backends.onnx.blocks import Blocking
from qdeploy.backends.onnx.proto import MICROSOFT, GraphBuilder
from qdeploy.ir.tensor import Array
from qdeploy.ir.views import Grouped
from qdeploy.ir.views.params import RowReader
from qdeploy.pack import bits as bit_stream

_PART: Mapping[str, Callable[[Array], Array]] = {"": lambda c: c, ".high": lambda c: c >> 4, ".low": lambda c: c & 15}
"""Names of the parts of a form, and which bits of a code each holds."""
FLOAT, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


@dataclass(frozen=True)
class AffineForm:
    """Integer codes in blocks.

    Attributes:
        name: The tensor's name; its initializers are `name.codes`, `name.scale`, ...
        view: The tensor as integers.
        blocking: How columns lie in blocks.
        bits: Bits of a code in the file: 2, 4 or 8.
        split: Whether codes of more than 4 bits are kept as high and low nibbles (bits is 4 then).
        level: accuracy_level of the kernel: 0 float32 activations, 4 activations quantized to int8 per block.
    """

    name: str
    view: Grouped
    blocking: Blocking
    bits: int
    split: bool
    level: int

    @property
    def label(self) -> str:
        """The parts that decide which kernels run."""
        blocking = self.blocking
        codes, zeros = (
            (f"int{self.view.bits} in nibbles", "nibble zeros") if self.split else (f"int{self.bits}", "zeros")
        )
        parts = [
            f"{codes} block {blocking.block}",
            zeros if self._zero_is_stored else "",
            "offsets" if self.view.offset else "",
            "gathered columns" if blocking.columns is not None else "",
        ]
        return " + ".join(part for part in parts if part)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.view.shape

    @property
    def _zero_is_stored(self) -> bool:
        return any(self._zero_of(part) != 1 << self.bits - 1 for part in self._parts)

    @property
    def _centre(self) -> int:
        """What is given as a zero point more than there is."""
        centred = self.level == 4 and self.view.offset is not None and self.view.zero == 0
        return 1 << self.view.bits - 1 if centred else 0

    @property
    def _zero_for_all(self) -> int | None:
        """The zero point, the centre included, where it is one for all."""
        return self.view.zero + self._centre if isinstance(self.view.zero, int) else None

    @property
    def _shift(self) -> int:
        """What is added to every code, and to the zero point: 0 where the zero points differ or there is no room."""
        zero = self._zero_for_all
        if zero is None:
            return 0
        wide = 8 if self.split else self.bits
        room = (1 << wide) - 1 - self.view.top
        implied = (136, 128) if self.split else (1 << self.bits - 1,)  # 136: both nibbles are then 8
        return next((wish - zero for wish in implied if 0 <= wish - zero <= room), 0)

    def _zero_of(self, part: str) -> int | None:
        """The zero point of a part, where all are one."""
        zero = self._zero_for_all
        return None if zero is None else int(_PART[part](np.array(zero + self._shift)))

    @property
    def _width(self) -> int:
        return self.blocking.count * self.blocking.block

    # ---- nodes

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """One MatMulNBits, or two for split codes, and the block-sum correction where there are offsets."""
        x = self._activations(builder, x)
        if not self.split and self.view.offset is None:
            self._product(builder, x, "", output)
            return
        total = self._joined(builder, [self._product(builder, x, part) for part in self._parts])
        if self.view.offset is not None:
            builder.node("Add", [total, self._correction(builder, self._block_sums(builder, x))], output)
        else:
            builder.node("Identity", [total], output)

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """GatherBlockQuantized on the same bytes; columns that were gathered or padded are put back."""
        total = self._joined(builder, [self._rows(builder, ids, part) for part in self._parts])
        if self.view.offset is not None:
            total = self._add_offset(builder, ids, total)
        self._restore(builder, total, output)

    def _joined(self, builder: GraphBuilder, parts: list[str]) -> str:
        """16 * high + low, or the only part."""
        if not self.split:
            return parts[0]
        return builder.node("Add", [builder.node("Mul", [parts[0], builder.constant(16.0, "float32")]), parts[1]])

    def _product(self, builder: GraphBuilder, x: str, part: str, output: str = "") -> str:
        n, count, block = self.shape[0], self.blocking.count, self.blocking.block
        codes = self._codes(builder, part, (n, count, block * self.bits // 8), "")
        return builder.node(
            "MatMulNBits",
            [x, codes, self._scale(builder), *self._zero(builder, part)],
            output,
            MICROSOFT,
            K=self._columns,
            N=builder.extent(n),
            bits=self.bits,
            block_size=block,
            accuracy_level=self.level,
        )

    def _rows(self, builder: GraphBuilder, ids: str, part: str) -> str:
        codes = self._codes(builder, part, (self.shape[0], self._width * self.bits // 8), ".rows")
        return builder.node(
            "GatherBlockQuantized",
            [codes, ids, self._scale(builder), *self._zero(builder, part)],
            "",
            MICROSOFT,
            bits=self.bits,
            block_size=self.blocking.block,
            gather_axis=0,
            quantize_axis=1,
        )

    @property
    def _columns(self) -> int:
        """Columns of the activations that meet the codes."""
        return self.shape[1] if self.blocking.columns is None else self._width

    def _activations(self, builder: GraphBuilder, x: str) -> str:
        columns = self.blocking.columns
        if columns is None:
            return x
        if self.blocking.padded:
            x = builder.once("Pad", [x, builder.constant([0, 1], "int64"), "", builder.constant([-1], "int64")])
        return builder.once("Gather", [x, builder.constant(columns, "int64")], axis=-1)

    def _block_sums(self, builder: GraphBuilder, x: str) -> str:
        missing = self._width - self._columns
        if missing:
            pads = builder.constant([0, missing], "int64")
            x = builder.once("Pad", [x, pads, "", builder.constant([-1], "int64")])
        shape = builder.constant([0, 0, self.blocking.count, self.blocking.block], "int64")
        split = builder.once("Reshape", [x, shape])  # [B, T, blocks, block]
        return builder.once("ReduceSum", [split, builder.constant([-1], "int64")], keepdims=0)

    def _correction(self, builder: GraphBuilder, sums: str) -> str:
        low = builder.node("FusedMatMul", [sums, self._offset(builder)], "", MICROSOFT, transB=1)
        if not self._centre:
            return low
        back = builder.node(
            "FusedMatMul", [sums, self._scale(builder)], "", MICROSOFT, transB=1, alpha=float(self._centre)
        )
        return builder.node("Add", [low, back])

    def _add_offset(self, builder: GraphBuilder, ids: str, rows: str) -> str:
        shape = builder.constant([0, 0, self.blocking.count, self.blocking.block], "int64")
        offset = builder.node("Gather", [self._offset(builder), ids])  # [B, T, blocks]
        if self._centre:
            scale = builder.node("Gather", [self._scale(builder), ids])
            offset = builder.node(
                "Add", [offset, builder.node("Mul", [scale, builder.constant(float(self._centre), "float32")])]
            )
        offset = builder.node("Unsqueeze", [offset, builder.constant([-1], "int64")])
        total = builder.node("Add", [builder.node("Reshape", [rows, shape]), offset])
        return builder.node("Reshape", [total, builder.constant([0, 0, self._width], "int64")])

    def _restore(self, builder: GraphBuilder, rows: str, output: str) -> None:
        columns = self.blocking.columns
        if columns is not None:
            place = np.empty(self.shape[1] + 1, np.int64)
            place[columns] = np.arange(len(columns))
            builder.node("Gather", [rows, builder.constant(place[:-1], "int64")], output, axis=-1)
        elif self._width != self.shape[1]:
            bounds = [builder.constant([n], "int64") for n in (0, self.shape[1], -1)]
            builder.node("Slice", [rows, *bounds], output)
        else:
            builder.node("Identity", [rows], output)

    # ---- initializers

    @property
    def _parts(self) -> tuple[str, ...]:
        return (".high", ".low") if self.split else ("",)

    def _codes(self, builder: GraphBuilder, part: str, shape: tuple[int, ...], suffix: str) -> str:
        name = f"{self.name}{part}.codes"
        row_shape = shape[1:]
        read, weight = self._code_reader(part)
        return builder.initializer(
            name + suffix, UINT8, shape, lambda a, b: read(a, b).reshape(b - a, *row_shape), weight, range_of=name
        )

    def _code_reader(self, part: str) -> tuple[RowReader, int]:
        """Rows as they lie in the file, and how much room making them needs."""
        view, stream, shift = self.view, self.view.stream, self._shift
        whole = self.blocking.columns is None and self._width == view.shape[1] and not part
        if whole and stream is not None and stream.layout.width <= self.bits:
            data, width = stream.data[0], stream.layout.width
            every = np.uint8(sum(shift << place for place in range(0, 8, self.bits)))  # no field overflows

            def read(start: int, stop: int) -> Array:
                moved = bit_stream.repack(data.read(start, stop), view.shape[1], width, self.bits)
                return moved + every if shift else moved

            return read, 1

        def pack(start: int, stop: int) -> Array:
            return bit_stream.pack(self._arranged(_PART[part](view.codes(start, stop) + np.uint8(shift))), self.bits)

        return pack, 24

    def _arranged(self, codes: Array) -> Array:
        """Codes in the order of the blocks: [rows, K] -> [rows, blocks * block]."""
        columns, missing = self.blocking.columns, self._width - codes.shape[1]
        if columns is None:
            return codes if not missing else np.pad(codes, ((0, 0), (0, missing)))
        if self.blocking.padded:
            codes = np.pad(codes, ((0, 0), (0, 1)))
        return np.take(codes, columns, axis=1)

    def _scale(self, builder: GraphBuilder) -> str:
        return builder.initializer(f"{self.name}.scale", FLOAT, self._block_shape, self._spread(self.view.scale), 4)

    def _offset(self, builder: GraphBuilder) -> str:
        assert self.view.offset is not None  # for the type checker: callers have looked
        return builder.initializer(f"{self.name}.offset", FLOAT, self._block_shape, self._spread(self.view.offset), 4)

    def _zero(self, builder: GraphBuilder, part: str) -> tuple[str, ...]:
        if self._zero_of(part) == 1 << self.bits - 1:
            return ()
        n, count = self._block_shape
        shape = (n, bit_stream.row_bytes(count, self.bits))
        read = self._zero_reader(part)
        return (builder.initializer(f"{self.name}{part}.zero", UINT8, shape, read, 8),)

    def _zero_reader(self, part: str) -> RowReader:
        zero, group, one = self.view.zero, self.blocking.group, self._zero_of(part)

        def read(start: int, stop: int) -> Array:
            if isinstance(zero, int):
                return bit_stream.pack(np.full((stop - start, len(group)), one, np.uint8), self.bits)
            return bit_stream.pack(_PART[part](zero(start, stop)[:, group]), self.bits)

        return read

    def _spread(self, read: RowReader) -> RowReader:
        group = self.blocking.group
        in_order = np.array_equal(group, np.arange(self.view.groups))
        return read if in_order else lambda start, stop: read(start, stop)[:, group]

    @property
    def _block_shape(self) -> tuple[int, int]:
        return (self.shape[0], self.blocking.count)
