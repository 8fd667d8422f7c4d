"""`qdeploy formats`: what can be read and written, and who brings it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from qdeploy.cli.tables import console, table

if TYPE_CHECKING:
    from qdeploy.catalog.rows import Row
    from qdeploy.contracts.formats import Format


@click.command("formats", short_help="List what can be read and written.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List readable formats and targets: the built-in ones, and those of installed plug-ins.

    A plug-in registers under the entry point group qdeploy.formats, qdeploy.backends or qdeploy.quantizers.

    \b
    Example:
      qdeploy formats --json
    """
    rows = listed()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    shown = [
        [
            r["name"],
            "read, write" if r["kind"] == "read" and r["writes"] else r["kind"],
            r["title"],
            r["from"],
        ]
        for r in rows
    ]
    console().print(table(["name", "use", "what", "from"], shown))


def listed() -> list[dict[str, Any]]:
    """A row for everything that there is; what cannot be loaded says why."""
    from qdeploy.quantize.specs import QUANTIZERS, usage
    from qdeploy.registry import BACKENDS, FORMATS

    kinds: tuple[tuple[str, Mapping[str, Row], Callable[[str], tuple[str, bool]]], ...] = (
        ("quantize", QUANTIZERS.rows(), lambda name: (usage(name), False)),
        ("read", FORMATS.rows(), lambda name: _format(FORMATS.get(name).load())),
        ("target", BACKENDS.rows(), lambda name: (BACKENDS.get(name).load().title, True)),
    )
    return [_row(kind, name, row.origin, describe) for kind, rows, describe in kinds for name, row in rows.items()]


def _row(kind: str, name: str, origin: str, describe: Callable[[str], tuple[str, bool]]) -> dict[str, Any]:
    from qdeploy.errors import QdeployError

    try:
        title, writes = describe(name)
    except QdeployError as error:
        title, writes = f"not available: {error.what}", False
    return {"name": name, "kind": kind, "writes": writes, "title": title, "from": origin}


def _format(loaded: Format) -> tuple[str, bool]:
    return loaded.TITLE, loaded.WRITES
