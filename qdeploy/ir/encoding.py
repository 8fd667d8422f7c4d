"""Nouns <-> JSON: how a tensor's description stands in a manifest.

    Buffer   [key, dtype, shape]
    Codes    {"codes": shape, "data": [Buffer], "layout": ["bits", 4], "table": "uint4" | Table,
              "zero": Param, "scale": Param, "offset": Param}
    LowRank  {"u": Codes, "vt": Codes}
    Table    {"values": Buffer, "select": Param}
    Param    {"values": Codes | LowRank, "tile": shape, "index": Buffer, "divide": true}
    Term     {"values": Codes | LowRank, "where": Codes, "mode": "set"}
    Rung     {"planes": [int], "terms": [Term], "error": float, "bias": Codes}
    QTensor  {"shape": shape, "dtype": str, "terms": [Term], "rungs": [Rung], "scale": Param, "offset": Param}

What has its default value is left out. Unknown keys are an error: a reader that skipped one would decode wrong numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import Buffer, Codes, Layout, LowRank, Param, QTensor, Rung, Table, Term

Json = Any
Resolve = Callable[[str, str, tuple[int, ...]], Buffer]
"""(key, dtype, shape) -> the buffer of that description."""


def tensor_to_json(tensor: QTensor) -> Json:
    """Returns the description of a tensor without its source; equal descriptions are equal JSON."""
    return _drop(
        {
            "shape": list(tensor.shape),
            "dtype": tensor.dtype,
            "terms": [_term(t) for t in tensor.terms],
            "rungs": [_rung(r) for r in tensor.rungs],
            "scale": _param(tensor.scale),
            "offset": _param(tensor.offset),
        }
    )


def tensor_from_json(tree: Json, resolve: Resolve, where: str) -> QTensor:
    """Builds a tensor; BadFileError, with `where`, for anything that is not exactly the grammar above."""
    return _Builder(resolve, where).tensor(tree)


def features(tree: Json) -> set[str]:
    """The names of everything that a reader must know to decode this description (for `requires`)."""
    names: set[str] = set()
    if isinstance(tree, dict):
        if "codes" in tree:
            names |= {f"layout:{tree['layout'][0]}"} | (
                {f"type:{tree['table']}"} if isinstance(tree["table"], str) else set()
            )
        for key, name in (
            ("u", "lowrank"),
            ("where", "where"),
            ("index", "index"),
            ("divide", "divide"),
            ("rungs", "rungs"),
            ("bias", "bias"),
        ):
            names |= {name} if key in tree else set()
        if "levels" in tree or isinstance(tree.get("table"), dict):
            names.add("table")
        for value in tree.values():
            names |= features(value)
    elif isinstance(tree, list):
        for value in tree:
            if isinstance(value, (dict, list)):
                names |= features(value)
    return names


def _drop(row: dict[str, Json]) -> Json:
    return {k: v for k, v in row.items() if v is not None and v != [] and v is not False} | (
        {"shape": row["shape"]} if "shape" in row else {}
    )


def _buffer(buffer: Buffer | None) -> Json:
    return None if buffer is None else [buffer.key, buffer.dtype, list(buffer.shape)]


def _values(values: Codes | LowRank | None) -> Json:
    if values is None:
        return None
    if isinstance(values, LowRank):
        return {"u": _values(values.u), "vt": _values(values.vt)}
    layout = values.layout
    numbers = {"plain": [], "radix": [layout.base, layout.digits]}.get(layout.kind, [layout.width])
    table: Json = values.table
    if isinstance(table, Table):
        table = _drop({"values": _buffer(table.values), "select": _param(table.select)})
    body = {
        "data": [_buffer(b) for b in values.data],
        "layout": [layout.kind, *numbers],
        "table": table,
        "zero": _param(values.zero),
        "scale": _param(values.scale),
        "offset": _param(values.offset),
    }
    return {"codes": list(values.shape), **_drop(body)}


def _param(param: Param | None) -> Json:
    if param is None:
        return None
    return _drop(
        {
            "values": _values(param.values),
            "tile": list(param.tile),
            "index": _buffer(param.index),
            "divide": param.divide,
        }
    )


def _term(term: Term) -> Json:
    mode = None if term.mode == "add" else term.mode
    return _drop({"values": _values(term.values), "where": _values(term.where), "mode": mode})


def _rung(rung: Rung) -> Json:
    terms = None if rung.terms is None else [_term(t) for t in rung.terms]
    return {"planes": list(rung.planes), **_drop({"terms": terms, "error": rung.error, "bias": _values(rung.bias)})}


class _Builder:
    """Builds nouns from JSON, checking every shape of the JSON on the way."""

    def __init__(self, resolve: Resolve, where: str) -> None:
        self._resolve, self._where = resolve, where

    def tensor(self, tree: Json) -> QTensor:
        row = self._object(tree, "tensor", {"shape", "dtype", "terms"}, {"rungs", "scale", "offset"})
        return QTensor(
            self._shape(row["shape"]),
            self._text(row["dtype"]),
            tuple(self.term(t) for t in self._list(row["terms"])),
            tuple(self.rung(r) for r in self._list(row.get("rungs", []))),
            self.param(row.get("scale")),
            self.param(row.get("offset")),
        )

    def term(self, tree: Json) -> Term:
        row = self._object(tree, "term", {"values"}, {"where", "mode"})
        where = row.get("where")
        mode = row.get("mode", "add")
        if mode not in ("add", "set"):
            self._fail("an unknown mode", mode, "add, set")
        return Term(self.values(row["values"]), None if where is None else self.codes(where), mode)

    def rung(self, tree: Json) -> Rung:
        row = self._object(tree, "rung", {"planes"}, {"terms", "error", "bias"})
        terms = None if "terms" not in row else tuple(self.term(t) for t in self._list(row["terms"]))
        bias = None if "bias" not in row else self.codes(row["bias"])
        return Rung(self._shape(row["planes"]), terms, row.get("error"), bias)

    def param(self, tree: Json) -> Param | None:
        if tree is None:
            return None
        row = self._object(tree, "param", {"values", "tile"}, {"index", "divide"})
        index = row.get("index")
        return Param(
            self.values(row["values"]),
            self._shape(row["tile"]),
            None if index is None else self.buffer(index),
            bool(row.get("divide", False)),
        )

    def values(self, tree: Json) -> Codes | LowRank:
        if isinstance(tree, dict) and "u" in tree:
            row = self._object(tree, "lowrank", {"u", "vt"}, set())
            return LowRank(self.codes(row["u"]), self.codes(row["vt"]))
        return self.codes(tree)

    def codes(self, tree: Json) -> Codes:
        row = self._object(tree, "codes", {"codes", "data", "layout", "table"}, {"zero", "scale", "offset"})
        table = row["table"]
        if not isinstance(table, str):
            parts = self._object(table, "table", {"values"}, {"select"})
            table = Table(self.buffer(parts["values"]), self.param(parts.get("select")))
        data = tuple(self.buffer(b) for b in self._list(row["data"]))
        return Codes(
            self._shape(row["codes"]),
            data,
            self.layout(row["layout"]),
            table,
            self.param(row.get("zero")),
            self.param(row.get("scale")),
            self.param(row.get("offset")),
        )

    def layout(self, tree: Json) -> Layout:
        kind, *numbers = self._list(tree) or [""]
        wanted = {"plain": 0, "bits": 1, "planes": 1, "radix": 2}
        if (
            not isinstance(kind, str)
            or kind not in wanted
            or len(numbers) != wanted[kind]
            or not all(isinstance(n, int) for n in numbers)
        ):
            self._fail("an unknown layout", tree, "plain, bits, planes or radix with their numbers")
        return Layout(kind, base=numbers[0], digits=numbers[1]) if kind == "radix" else Layout(kind, *numbers)

    def buffer(self, tree: Json) -> Buffer:
        row = self._list(tree)
        if len(row) != 3:
            self._fail("a buffer is not a triple", tree, "[key, dtype, shape]")
        return self._resolve(self._text(row[0]), self._text(row[1]), self._shape(row[2]))

    def _object(self, tree: Json, noun: str, needed: set[str], allowed: set[str]) -> Mapping[str, Json]:
        if not isinstance(tree, dict) or not needed <= tree.keys() <= needed | allowed:
            actual = sorted(tree) if isinstance(tree, dict) else type(tree).__name__
            self._fail(f"a {noun} is not described as one", actual, ", ".join(sorted(needed | allowed)))
        return tree  # type: ignore[no-any-return]

    def _list(self, tree: Json) -> list[Json]:
        if not isinstance(tree, list):
            self._fail("a list was expected", type(tree).__name__, "a list")
        return tree  # type: ignore[no-any-return]

    def _shape(self, tree: Json) -> tuple[int, ...]:
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48 for n in self._list(tree)):
            self._fail("a shape is not a list of sizes", tree, "non-negative integers")
        return tuple(tree)

    def _text(self, tree: Json) -> str:
        if not isinstance(tree, str):
            self._fail("a name was expected", type(tree).__name__, "a string")
        return tree  # type: ignore[no-any-return]

    def _fail(self, what: str, found: object, allowed: str) -> None:
        raise BadFileError(f"the manifest holds {what}", where=self._where, found=found, allowed=allowed)
