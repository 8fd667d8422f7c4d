"""The matrices of a model: which of them are looked at, what they become, and what is said of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import UnsupportedError
from qdeploy.ir.model import Model, ReplacedTensors
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, ComputedRows, Layout, Param, QTensor, Source, Table, Term
from qdeploy.ir.views import Floats, view
from qdeploy.pack import bits as bitstream
from qdeploy.progress import SILENT, Progress
from qdeploy.recover.families import Family
from qdeploy.recover.matrix import Grid, Part, find, part, share
from qdeploy.recover.spec import RecoverySpec, parse

Array = npt.NDArray[Any]
_STORAGE = {"f16": "F16", "bf16": "BF16", "f32": "F32", "e8m0": "F8_E8M0", "e4m3": "F8_E4M3"}
_LOOKED_AT = 3  # matrices that `detected` looks at


def recover_model(model: Model, text: str, progress: Progress = SILENT) -> Model:
    """Returns the model with the float matrices that lie on a grid as codes and scales; every float is proven.

    Args:
        model: As its reader gives it.
        text: The request (`qdeploy.recover.spec.parse`).
        progress: Told of each matrix.

    Raises:
        BadArgumentError: The request does not parse.
        UnsupportedError: No matrix lies on a grid; the error says why for the first ones.
    """
    spec = parse(text)
    matrices = {name: floats for name, floats in _matrices(model) if spec.take(name)}
    progress.start("looking for grids", len(matrices), "tensors")
    tensors: dict[str, QTensor] = {}
    grids: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for name, floats in matrices.items():
        grid, described, reason = _proven(model.tensors[name], floats, spec)
        if grid is None or described is None:
            reasons[name] = reason
        else:
            tensors[name] = described
            grids.setdefault(grid.describe(), []).append(name)
        progress.advance(1, name)
    if not tensors:
        raise UnsupportedError(
            "no weights lie on a grid",
            where=model.path,
            found="; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3]) or "no float matrices",
            todo="Convert without --recover, or name the grid: --recover int4,group=32.",
        )
    model.notes.extend(f"recovered {grid}: {_list(names)}" for grid, names in grids.items())
    model.notes.extend(f"kept as floats: {name}: {reason}" for name, reason in reasons.items())
    return dataclasses.replace(model, tensors=ReplacedTensors(model.tensors, tensors))


def detected(model: Model) -> list[str]:
    """Sentences on the grids that a few float matrices of a model seem to lie on, from sampled rows."""
    sentences: dict[str, None] = {}
    for _, floats in _spread(list(_matrices(model))):
        grid = next(find(floats, None, RecoverySpec().groups), None)
        if grid is not None:
            bits = f"a {grid.family.bits}-bit grid"
            where = f"of groups of {grid.group}" if grid.group else "with one scale"
            sentences[f"float weights lie on {bits} {where} ({grid.family.name}): --recover auto"] = None
    return list(sentences)


def _spread(matrices: list[tuple[str, Floats]]) -> list[tuple[str, Floats]]:
    """The first, the middle and the last."""
    step = max(1, (len(matrices) - 1) // max(1, _LOOKED_AT - 1))
    return matrices[::step][:_LOOKED_AT]


def _matrices(model: Model) -> Iterator[tuple[str, Floats]]:
    for name, tensor in model.tensors.items():
        if len(tensor.shape) == 2 and min(tensor.shape) > 1:
            seen = view(tensor)
            if isinstance(seen, Floats):
                yield name, seen


def _proven(tensor: QTensor, floats: Floats, spec: RecoverySpec) -> tuple[Grid | None, QTensor | None, str]:
    """The grid of a matrix and the matrix on it, or why it has none."""
    what = "a grid that is known" if spec.family is None else spec.family.name
    reason, most = f"its sampled rows do not lie on {what}", 0.0
    for grid in find(floats, spec.family, spec.groups):
        described = _described(tensor, floats, grid)
        on_grid = share(floats, grid, described)
        if on_grid == 1:
            return grid, described, ""
        if on_grid > most:
            reason, most = f"{on_grid:.2%} of its rows lie on {grid.describe()}", on_grid
    return None, None, reason


def _list(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} tensors ({names[0]} to {names[-1]})"


# ---- description


def _described(tensor: QTensor, floats: Floats, grid: Grid) -> QTensor:
    """The matrix as codes, with its scales, and its zero points or tables where the family has them."""
    rows, width = tensor.shape
    family, group = grid.family, grid.group or width
    work = _Rows(floats, grid)
    groups, tile = -(-width // group), (1, group)
    scale = _scale(work, grid, rows, groups)
    zero: Param | None = None
    offset: Param | None = None
    table: str | Table = family.dtype or f"uint{family.bits}"
    if family.whole and family.zero:
        points = Buffer("zero", "U8", (rows, groups), ComputedRows(work.zeros))
        zero = Param(Codes((rows, groups), (points,), PLAIN, "uint8"), tile)
    elif family.offset:
        added = Buffer("offset", _STORAGE[grid.scale], (rows, groups), ComputedRows(work.seconds))
        offset = Param(Codes((rows, groups), (added,), PLAIN, grid.scale), tile)
    elif family.whole and not family.dtype:
        middle = Buffer.of("zero", np.full((1, 1), -family.range[0], np.uint8), "U8")
        zero = Param(Codes((1, 1), (middle,), PLAIN, "uint8"), tensor.shape)
    elif not family.dtype:
        table = _tables(work, family, rows, groups, tile)
    packed = Buffer("codes", "U8", (rows, -(-width * family.bits // 8)), ComputedRows(work.codes))
    codes = Codes(tensor.shape, (packed,), Layout("bits", family.bits), table, zero, scale, offset)
    terms = _planes(work, tensor.shape, grid) if family.planes else (Term(codes),)
    source = tensor.source
    kept = Source(
        source.format if source else "floats",
        tensors=source.tensors if source else (),
        exact="recovered",
    )
    return QTensor(tensor.shape, grid.narrow or floats.codes.data[0].dtype, terms, source=kept)


def _planes(work: _Rows, shape: tuple[int, ...], grid: Grid) -> tuple[Term, ...]:
    """Two grids of bits, each with scales of its own."""
    (rows, width), terms = shape, []
    groups = -(-width // grid.group)
    for which, numbers in enumerate((work.scales, work.seconds)):
        bits = Buffer(f"plane.{which}", "U8", (rows, -(-width // 8)), ComputedRows(partial(work.plane, which)))
        scale = Buffer(f"scale.{which}", _STORAGE[grid.scale], (rows, groups), ComputedRows(numbers))
        own = Param(Codes((rows, groups), (scale,), PLAIN, grid.scale), (1, grid.group))
        terms.append(Term(Codes(shape, (bits,), Layout("bits", 1), "uint1", scale=own)))
    return tuple(terms)


def _scale(work: _Rows, grid: Grid, rows: int, groups: int) -> Param:
    if not grid.group:
        value = np.full((1, 1), grid.factor, np.float32)
        return Param(Codes((1, 1), (Buffer.of("scale", value, "F32"),), PLAIN, "f32"), (rows, work.width))
    buffer = Buffer("scale", _STORAGE[grid.scale], (rows, groups), ComputedRows(work.scales))
    inner = None
    if grid.scale == "e4m3":
        factor = Buffer.of("scale.scale", np.full((1, 1), grid.factor, np.float32), "F32")
        inner = Param(Codes((1, 1), (factor,), PLAIN, "f32"), (rows, groups))
    return Param(Codes((rows, groups), (buffer,), PLAIN, grid.scale, scale=inner), (1, grid.group))


def _tables(work: _Rows, family: Family, rows: int, groups: int, tile: tuple[int, int]) -> Table:
    values = np.array([list(t) + [0.0] * ((1 << family.bits) - len(t)) for t in family.tables], np.float32)
    stored = Buffer.of("table", values, "F32")
    if len(family.tables) == 1:
        return Table(stored)
    choice = Buffer("select", "U8", (rows, groups), ComputedRows(work.choices))
    return Table(stored, Param(Codes((rows, groups), (choice,), PLAIN, "uint8"), tile))


class _Rows:
    """The parts of a matrix by row range; the last one is kept, for the buffers are read in turn."""

    def __init__(self, floats: Floats, grid: Grid) -> None:
        self._floats, self._grid = floats, grid
        self.width = floats.codes.shape[1]
        self._codes_of = _code_tables(grid.family)
        self._kept: tuple[tuple[int, int], Part] | None = None

    def codes(self, start: int, stop: int) -> Array:
        """Packed codes: uint8 [rows, ceil(K * bits / 8)]."""
        return np.concatenate(
            [bitstream.pack(self._coded(p), self._grid.family.bits) for p in self._parts(start, stop)]
        )

    def scales(self, start: int, stop: int) -> Array:
        """Scales in the grid's type: [rows, groups]."""
        return self._stored([p.scales for p in self._parts(start, stop)])

    def seconds(self, start: int, stop: int) -> Array:
        """The second number of every group, in the same type."""
        return self._stored([p.second for p in self._parts(start, stop) if p.second is not None])

    def plane(self, which: int, start: int, stop: int) -> Array:
        """One bit of every code: uint8 [rows, ceil(K / 8)]."""
        bits = [(self._coded(p) >> which & 1).astype(np.uint8) for p in self._parts(start, stop)]
        return np.concatenate([bitstream.pack(each, 1) for each in bits])

    def _stored(self, parts: list[npt.NDArray[np.float64]]) -> Array:
        from qdeploy.ir.dtype import dtype
        from qdeploy.store.storage import storage_dtype

        row = dtype(self._grid.scale)
        return np.concatenate(parts).astype(np.float32).astype(row.numpy).view(storage_dtype(row.storage))

    def zeros(self, start: int, stop: int) -> Array:
        """Zero points: uint8 [rows, groups]."""
        return np.concatenate([self._zeros(p) for p in self._parts(start, stop)])

    def choices(self, start: int, stop: int) -> Array:
        """Which table each group takes: uint8 [rows, groups]."""
        return np.concatenate([p.table for p in self._parts(start, stop)]).astype(np.uint8)

    def _parts(self, start: int, stop: int) -> Iterator[Part]:
        step = max(1, (1 << 17) // self.width)
        for low in range(start, stop, step):
            yield self._part(low, min(low + step, stop))

    def _part(self, start: int, stop: int) -> Part:
        if self._kept is None or self._kept[0] != (start, stop):
            self._kept = (start, stop), part(self._floats.rows(start, stop), self._grid)
        return self._kept[1]

    def _zeros(self, p: Part) -> Array:
        """A group's zero point is the least that makes all of its codes whole numbers from 0 on."""
        rows, count = p.table.shape
        padded = np.zeros((rows, count * self._grid.group))
        padded[:, : self.width] = p.levels
        points: Array = np.maximum(-padded.reshape(rows, count, -1).min(axis=2), 0).astype(np.uint8)
        return points

    def _coded(self, p: Part) -> npt.NDArray[np.uint8]:
        family, group = self._grid.family, self._grid.group or self.width
        codes: npt.NDArray[np.uint8]
        if family.paired:
            return p.levels.astype(np.uint8)
        if family.whole:
            zero = np.repeat(self._zeros(p), group, axis=1)[:, : self.width] if family.zero else -family.range[0]
            codes = (p.levels + zero).astype(np.uint8)
            return codes
        table = np.repeat(p.table, group, axis=1)[:, : self.width]
        codes = np.zeros(p.levels.shape, np.uint8)
        for which, (levels, values) in enumerate(self._codes_of):
            here = table == which
            codes[here] = values[np.searchsorted(levels, p.levels[here])]
        return codes


def _code_tables(family: Family) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]]:
    """For each table of levels, ascending: the code of each."""
    from qdeploy.ir.dtype import dtype

    tables = family.tables
    if family.dtype and not family.whole:
        tables = (tuple(float(value) for value in dtype(family.dtype).values()),)
    pairs = []
    for table in tables:
        values = np.array(table, np.float32).astype(np.float64)
        finite = np.flatnonzero(np.isfinite(values))
        levels, first = np.unique(values[finite], return_index=True)
        pairs.append((levels, finite[first].astype(np.uint8)))
    return pairs
