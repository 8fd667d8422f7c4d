"""`qdeploy formats`: what can be read and written, and who brings it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
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

    A plug-in registers under the entry point group qdeploy.formats, qdeploy.backends or qdeploy.quantizers.

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
    from qdeploy.coverage import coverage
    from qdeploy.errors import QdeployError
    from qdeploy.integer.integerize import RULES
    from qdeploy.registry import BACKENDS

    lowered: dict[str, frozenset[str]] = {"as integers": frozenset(RULES)}
    for name in BACKENDS.rows():
        try:
            lowered[name] = BACKENDS.get(name).load().ops()
        except QdeployError as error:
            click.echo(f"{name}: not available: {error.what}", err=True)
    rows = coverage(lowered)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    shown = [[row.op, row.source, ", ".join(row.traits), *row.backends.values()] for row in rows]
    console().print(table(["op", "semantics of", "traits", *lowered], shown))


def listed() -> list[dict[str, Any]]:
    """A row for everything that there is; what cannot be loaded says why."""
    from qdeploy.quantize.specs import QUANTIZERS, usage
    from qdeploy.registry import BACKENDS, FORMATS

    kinds: tuple[tuple[str, Mapping[str, Row], Callable[[str], tuple[str, bool]]], ...] = (
        ("quantize", QUANTIZERS.rows(), lambda name: (usage(name), False)),
        ("read", FORMATS.rows(), lambda name: _format(FORMATS.get(name).load())),
        ("target", BACKENDS.rows(), lambda name: (BACKENDS.get(name).load().title, True)),
    )
    return [_row(kind, row, name, describe) for kind, rows, describe in kinds for name, row in rows.items()]


def _row(kind: str, row: Row, name: str, describe: Callable[[str], tuple[str, bool]]) -> dict[str, Any]:
    from qdeploy.errors import QdeployError

    try:
        title, writes = describe(name)
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
