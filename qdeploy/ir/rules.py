"""What makes a tensor legal: one function per invariant. Every description that comes from a file is judged by them.

`check` looks at the description alone and reads no data, so that every decode can begin with it; `check_values` (whose
rules are in data_rules.py) streams over what the description points to.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from qdeploy.errors import BadFileError
from qdeploy.ir.codes import container, packed_shape
from qdeploy.ir.dtype import dtype
from qdeploy.ir.tensor import Buffer, Codes, LowRank, QTensor, Shape, Table, Term, buffers
from qdeploy.ir.walk import Place, walk
from qdeploy.store.storage import storage_dtype

MAX_ELEMENTS = 1 << 48
MAX_RANK = 8
MAX_EXPANSION = 1 << 16
"""Elements per stored byte: a rank-one product of large vectors is the extreme; more is an attack on the memory."""


def check(tensor: QTensor, where: str) -> None:
    """Judges the description of a tensor.

    Args:
        tensor: Any tensor; no data of it is read.
        where: Its name, for messages.

    Raises:
        BadFileError: A rule is broken; says which, and where in the tree.
        UnsupportedError: A number format or a storage type is unknown.
    """
    _shape_is_bounded(tensor.shape, where)
    _keys_are_unique(tensor, where)
    for place in walk(tensor, where):
        for rule in _RULES:
            rule(place)
    for i, term in enumerate(tensor.terms):
        _term_covers_the_tensor(term, tensor, f"{where}: term {i}")
        _mask_fits(term, f"{where}: term {i}")
    _rungs_are_a_ladder(tensor, where)
    _elements_are_stored(tensor, where)


def check_values(tensor: QTensor, where: str) -> None:
    """Judges the data of a tensor whose description is legal, in slabs.

    Args:
        tensor: A tensor that `check` has passed.
        where: Its name, for messages.

    Raises:
        BadFileError: A code, a selected table or a column index is out of range, a mask selects another number of codes
            than there are, or a scale, zero or offset is not finite. Names the place and the first position.
    """
    from qdeploy.ir.data_rules import check_data  # it decodes, and decoding begins with `check`

    check_data(tensor, where)


def _shape_is_bounded(shape: Shape, where: str) -> None:
    if len(shape) > MAX_RANK or any(n < 0 for n in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise BadFileError(
            "a shape is out of bounds",
            where=where,
            found=shape,
            allowed=f"at most {MAX_RANK} axes and 2 ** 48 elements",
        )


def _keys_are_unique(tensor: QTensor, where: str) -> None:
    seen: dict[str, Buffer] = {}
    for buffer in buffers(tensor):
        if seen.setdefault(buffer.key, buffer) != buffer:
            raise BadFileError("two buffers with one name", where=where, found=buffer.key)
        if not buffer.shape:
            raise BadFileError("a buffer without axes", where=where, found=buffer.key)
        storage_dtype(buffer.dtype)


def _grid_is_bounded(place: Place) -> None:
    values = place.values
    if isinstance(values, LowRank):
        return
    block = values.block
    if not values.shape or len(block) != len(values.shape) or any(n < 1 for n in block):
        place.refuse("a codebook's blocks do not fit the grid", block, f"{len(values.shape)} positive extents")
    _shape_is_bounded(values.decoded_shape, place.path)


def _factors_fit(place: Place) -> None:
    values = place.values
    if not isinstance(values, LowRank):
        return
    ranks = [len(f.shape) == len(f.block) == 2 for f in (values.u, values.vt)]
    if not all(ranks) or values.u.decoded_shape[1] != values.vt.decoded_shape[0]:
        place.refuse(
            "the factors of a low-rank product do not fit",
            f"{values.u.shape} and {values.vt.shape}",
            "[N, k] and [k, K]",
        )


def _layout_is_known(place: Place) -> None:
    if isinstance(place.values, LowRank):
        return
    layout = place.values.layout
    legal = {
        "plain": True,
        "bits": 1 <= layout.width <= 16,
        "planes": 1 <= layout.width <= 16,
        "radix": layout.base >= 2 and 1 <= layout.digits <= 8 and layout.base ** min(layout.digits, 9) <= 256,
    }
    if not legal.get(layout.kind, False):
        place.refuse(
            "a layout that no codes can have", layout, "plain, bits and planes of 1 to 16, radix within a byte"
        )


def _buffers_hold_the_grid(place: Place) -> None:
    values = place.values
    if isinstance(values, LowRank):
        return
    layout = values.layout
    if len(values.data) != (layout.width if layout.kind == "planes" else 1):
        place.refuse("codes with another number of buffers than their layout has", len(values.data))
    for buffer in values.data:
        if layout.kind != "plain" and buffer.dtype != "U8":
            place.refuse("packed codes are bytes", buffer.dtype, "U8")
        if place.where and len(buffer.shape) != 1:
            place.refuse("codes under a mask are one run", buffer.shape, "one axis")
        if not place.where and buffer.shape != packed_shape(values, values.shape):
            place.refuse(
                "a buffer does not have the shape of its grid",
                f"{buffer.key} {buffer.shape}",
                str(packed_shape(values, values.shape)),
            )


def _number_format_fits(place: Place) -> None:
    """Wide formats are views of their bits, so their container has exactly their width."""
    values = place.values
    if isinstance(values, LowRank) or isinstance(values.table, Table):
        return
    kind = dtype(values.table)
    if kind.bits > 8 and container(values) != 1 << kind.bits:
        place.refuse("a number format in a container of another width", f"{kind.name} in {values.data[0].dtype}")


def _codebook_is_whole(place: Place) -> None:
    values = place.values
    if isinstance(values, LowRank) or isinstance(values.table, str):
        return
    shape = values.table.values.shape
    if len(shape) < 2 or any(n < 1 for n in shape):
        place.refuse("a codebook without entries", shape, "[tables, levels, *block]")
    _shape_is_bounded(shape, place.path)


def _tiles_cover_the_owner(place: Place) -> None:
    param = place.param
    if param is None:
        return
    if len(param.tile) != len(place.owner) or any(t < 1 for t in param.tile):
        place.refuse("a tile is not one positive extent per axis", param.tile, f"{len(place.owner)} extents")
    grid = place.values.decoded_shape
    wanted = tuple(-(-n // t) for n, t in zip(place.owner, param.tile, strict=True))
    if param.index is not None:
        _index_is_one_per_column(place, param.index)
        grid, wanted = grid[:-1], wanted[:-1]
    if grid != wanted:
        place.refuse("a parameter's grid does not cover its owner", grid, f"{wanted} tiles of {param.tile}")


def _index_is_one_per_column(place: Place, index: Buffer) -> None:
    tile = place.param.tile if place.param else ()
    if index.dtype != "I32" or index.shape != place.owner[-1:] or len(place.owner) < 2 or tile[-1] != 1:
        place.refuse("a column index is not one per column", f"{index.dtype} {index.shape}", f"I32 {place.owner[-1:]}")
    if len(place.values.decoded_shape) != len(place.owner):
        place.refuse("a parameter's grid has another rank than its owner", place.values.decoded_shape)


def _only_scales_divide(place: Place) -> None:
    if place.param is not None and place.param.divide and place.role != "scale":
        place.refuse("only a scale may divide", place.role)


def _integers_are_bare(place: Place) -> None:
    """What selects tables or elements is an integer: codes of a named format without params."""
    if place.role not in ("select", "mask"):
        return
    values = place.values
    if isinstance(values, LowRank) or not isinstance(values.table, str):
        place.refuse("a selection is not made of integers", allowed="codes of a named number format")
    if any(p is not None for p in (values.zero, values.scale, values.offset)):
        place.refuse("a selection has a zero, scale or offset", allowed="bare codes")
    if place.role == "mask" and values.table not in ("uint1", "bool"):
        place.refuse("a mask is not made of bits", values.table, "uint1, bool")


_RULES: tuple[Callable[[Place], None], ...] = (
    _layout_is_known,
    _codebook_is_whole,
    _grid_is_bounded,
    _factors_fit,
    _buffers_hold_the_grid,
    _number_format_fits,
    _tiles_cover_the_owner,
    _only_scales_divide,
    _integers_are_bare,
)


def _term_covers_the_tensor(term: Term, tensor: QTensor, where: str) -> None:
    grid = term.values.decoded_shape
    if math.prod(grid) < math.prod(tensor.shape):
        raise BadFileError(
            "a term's grid is smaller than its tensor",
            where=where,
            found=grid,
            allowed=f"at least {math.prod(tensor.shape)} elements",
        )


def _elements_are_stored(tensor: QTensor, where: str) -> None:
    if math.prod(tensor.shape) > MAX_EXPANSION * tensor.nbytes:
        raise BadFileError(
            "a tensor with far more elements than bytes",
            where=where,
            found=tensor.shape,
            allowed=f"{MAX_EXPANSION} elements for each of its {tensor.nbytes} bytes",
        )


def _mask_fits(term: Term, where: str) -> None:
    if term.where is None:
        return
    grid = term.values.decoded_shape
    if term.where.shape not in (grid, (*(1 for _ in grid[1:]), grid[-1])):
        raise BadFileError(
            "a mask covers neither the grid nor its columns",
            where=where,
            found=term.where.shape,
            allowed=f"{grid}, or 1 on every axis but the last",
        )
    per_column = term.where.shape != grid and len(grid) == 2
    if isinstance(term.values, Codes) and term.values.shape != grid and not (per_column and term.values.block[1] == 1):
        raise BadFileError(
            "vector codes under a mask", where=where, found=term.values.block, allowed="columns of vectors, by column"
        )


def _rungs_are_a_ladder(tensor: QTensor, where: str) -> None:
    """Every rung has at least the planes of the one before; the last one has all."""
    full = tuple(_planes(term) for term in tensor.terms)
    before = (0,) * len(full)
    for i, rung in enumerate(tensor.rungs):
        place = f"{where}: rung {i}"
        steps = zip(before, rung.planes, full, strict=True) if len(rung.planes) == len(full) else None
        if steps is None or not all(low <= n <= high for low, n, high in steps):
            raise BadFileError(
                "a rung that is not a step of a ladder", where=place, found=rung.planes, allowed=f"{before} to {full}"
            )
        before = rung.planes
        if rung.bias is not None and rung.bias.decoded_shape != tensor.shape[:1]:
            wrong, allowed = rung.bias.decoded_shape, str(tensor.shape[:1])
            raise BadFileError("a bias is not one number per row", where=place, found=wrong, allowed=allowed)
        for j, term in enumerate(rung.terms or ()):
            _rung_uses_the_planes(term, tensor.terms[j] if j < len(full) else None, rung.planes[j : j + 1], place)
            _term_covers_the_tensor(term, tensor, place)
            _mask_fits(term, place)
        if rung.terms is not None and len(rung.terms) != len(full):
            raise BadFileError("a rung has another number of terms than its tensor", where=place, found=len(rung.terms))
    if tensor.rungs and before != full:
        raise BadFileError("the last rung is not the complete form", where=where, found=before, allowed=str(full))


def _rung_uses_the_planes(term: Term, whole: Term | None, planes: tuple[int, ...], where: str) -> None:
    """A rung's own term reads the leading planes of the term it stands for."""
    if whole is None or not isinstance(term.values, Codes) or not isinstance(whole.values, Codes):
        return
    if planes[0] and term.values.layout.kind == "planes" and term.values.data != whole.values.data[: planes[0]]:
        raise BadFileError(
            "a rung's term does not read the planes of its rung",
            where=where,
            found=[b.key for b in term.values.data],
            allowed=f"the first {planes[0]}",
        )


def _planes(term: Term) -> int:
    planar = isinstance(term.values, Codes) and term.values.layout.kind == "planes"
    return len(term.values.data) if planar and isinstance(term.values, Codes) else 1
