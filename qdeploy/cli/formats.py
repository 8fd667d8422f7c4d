"""`qdeploy formats`: what can be read and written, and who brings it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from qdeploy.cli.tables import console, table

if TYPE_CHECKING:
    from qdeploy.catalog.rows import Row
    from qdeploy.contracts.formats import Format


@click.command("formats", short_help="List what can be read and written.")
@click.option("--ops", is_flag=True, help="List the ops of networks instead, and which target runs each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(ops: bool, as_json: bool) -> None:
    """List readable formats and targets: the built-in ones, and those of installed plug-ins.

    A plug-in registers under the entry point group qdeploy.formats, qdeploy.backends, qdeploy.quantizers or
    qdeploy.extensions.

    \b
    Examples:
      qdeploy formats --json
      qdeploy formats --ops
    """
    if ops:
        _print_ops(as_json)
        return
    rows = listed()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    shown = [
        [
            r["name"],
            "read, write" if r["kind"] == "read" and r["writes"] else r["kind"],
            r["title"],
            r["tested"],
            r["from"],
        ]
        for r in rows
    ]
    console().print(table(["name", "use", "what", "tested against", "from"], shown))


def _print_ops(as_json: bool) -> None:
    """The table of ops against targets; a target that is not installed has no column."""
    from qdeploy.catalog.extensions import load_extensions
    from qdeploy.coverage import coverage
    from qdeploy.errors import QdeployError
    from qdeploy.integer.integerize import RULES
    from qdeploy.registry import BACKENDS

    lowered: dict[str, frozenset[str]] = {"as integers": frozenset(RULES)}
    for name in BACKENDS.rows():
        try:
            row = BACKENDS.get(name)
            with row.blamed("while it listed its ops"):
                lowered[name] = frozenset(row.load().ops())
        except QdeployError as error:
            click.echo(f"{name}: not available: {error.what}", err=True)
    load_extensions()
    rows = coverage(lowered)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    shown = [[row.op, row.source, ", ".join(row.traits), *row.backends.values()] for row in rows]
    console().print(table(["op", "semantics of", "traits", *lowered], shown))


def listed() -> list[dict[str, Any]]:
    """A row for everything that there is; what cannot be loaded says why."""
    from qdeploy.catalog.extensions import extensions
    from qdeploy.quantize.specs import QUANTIZERS, usage
    from qdeploy.registry import BACKENDS, FORMATS

    kinds: tuple[tuple[str, Mapping[str, Row], Callable[[str], tuple[str, bool]]], ...] = (
        ("quantize", QUANTIZERS.rows(), lambda name: (usage(name), False)),
        ("read", FORMATS.rows(), lambda name: _format(FORMATS.get(name).load())),
        ("target", BACKENDS.rows(), lambda name: (_title(name), True)),
    )
    rows = [_row(kind, row, name, describe) for kind, rows, describe in kinds for name, row in rows.items()]
    rows += [_row("extension", row, row.name, partial(_extension, row)) for row in extensions()]
    shadowed = (("quantize", QUANTIZERS.shadowed()), ("read", FORMATS.shadowed()), ("target", BACKENDS.shadowed()))
    return rows + [_shadowed(kind, row) for kind, hidden in shadowed for row in hidden]


def _extension(row: Row, name: str) -> tuple[str, bool]:
    row.loaded()
    return "number types, ops or families of models", False


def _title(target: str) -> str:
    """The line about a target; UnsupportedError also where its options cannot be told from others."""
    from qdeploy.registry import backend
    from qdeploy.spec import options_class

    options_class(target)
    return backend(target).title


def _shadowed(kind: str, row: Row) -> dict[str, Any]:
    """A row of a distribution that nobody can ask for."""
    title = "not available: the name is taken"
    return {"name": row.name, "kind": kind, "writes": False, "title": title, "tested": "", "from": row.origin}


def _row(kind: str, row: Row, name: str, describe: Callable[[str], tuple[str, bool]]) -> dict[str, Any]:
    from qdeploy.errors import QdeployError

    try:
        with row.blamed("while it was listed"):
            title, writes = describe(name)
            title = str(title)
    except QdeployError as error:
        title, writes = f"not available: {error.what}", False
    return {
        "name": name,
        "kind": kind,
        "writes": writes,
        "title": title,
        "tested": getattr(row, "tested", ""),
        "from": row.origin,
    }


def _format(loaded: Format) -> tuple[str, bool]:
    return loaded.TITLE, loaded.WRITES
