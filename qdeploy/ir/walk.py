"""The tree of a tensor, flattened: every grid of codes with its place, for those who judge or list tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import Codes, LowRank, Param, QTensor, Shape, Table

MAX_DEPTH = 4
"""Params within params: a sign plane whose scale has a scale that has a scale is the deepest that is published."""


@dataclass(frozen=True)
class Place:
    """A grid of codes in the tree of a tensor, and how it is used there.

    Attributes:
        path: From the tensor's name on, for messages.
        role: "term", "zero", "scale", "offset", "select", "mask" or "factor".
        values: The grid.
        param: The param whose values these are.
        owner: The decoded grid that the param is laid over.
        depth: Number of params above, this one included.
        where: The mask, if `data` lists only selected codes.
        tables: For "select": how many tables there are to choose from.
    """

    path: str
    role: str
    values: Codes | LowRank
    param: Param | None = None
    owner: Shape = ()
    depth: int = 0
    where: Codes | None = None
    tables: int = 0

    def refuse(self, what: str, found: object = "", allowed: str = "") -> NoReturn:
        """Raises a BadFileError that names the place."""
        raise BadFileError(what, where=self.path, found=found, allowed=allowed)


def walk(tensor: QTensor, where: str) -> Iterator[Place]:
    """Every grid of codes, each before those that hang on it: what is yielded may be judged before it is descended."""
    if not tensor.terms:
        raise BadFileError("a tensor without a term", where=where)
    sets = [("", tensor.terms), *((f"rung {i} ", rung.terms or ()) for i, rung in enumerate(tensor.rungs))]
    for prefix, terms in sets:
        for i, term in enumerate(terms):
            path = f"{where}: {prefix}term {i}"
            if term.where is not None:
                yield from _descend(Place(f"{path}.where", "mask", term.where))
            yield from _descend(Place(path, "term", term.values, where=term.where))
    for i, rung in enumerate(tensor.rungs):
        if rung.bias is not None:
            yield from _descend(Place(f"{where}: rung {i} bias", "factor", rung.bias))
    for role, param in (("scale", tensor.scale), ("offset", tensor.offset)):
        if param is not None:
            yield from _descend(Place(f"{where}: {role}", role, param.values, param, tensor.shape or (1,), 1))


def _descend(place: Place) -> Iterator[Place]:
    yield place
    if place.depth > MAX_DEPTH:
        place.refuse("params are nested too deep", place.depth, str(MAX_DEPTH))
    values = place.values
    if isinstance(values, LowRank):
        for name, factor in (("u", values.u), ("vt", values.vt)):
            yield from _descend(Place(f"{place.path}.{name}", "factor", factor, depth=place.depth))
        return
    if isinstance(values.table, Table) and values.table.select is not None:
        below = _below(place, "select", values.table.select, values.shape)
        yield from _descend(replace(below, tables=values.table.values.shape[0]))
    for role, param in (("zero", values.zero), ("scale", values.scale), ("offset", values.offset)):
        if param is not None:
            yield from _descend(_below(place, role, param, values.decoded_shape))


def _below(place: Place, role: str, param: Param, owner: Shape) -> Place:
    return Place(f"{place.path}.{role}", role, param.values, param, owner, place.depth + 1)
