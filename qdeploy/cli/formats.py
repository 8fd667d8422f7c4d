"""`qdeploy formats`: what can be read and written, and who brings it."""

from __future__ import annotations

import json

import click

from qdeploy.cli.screen import console, table


@click.command("formats", short_help="List what can be read and written.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List readable formats and targets: the built-in ones, and those of installed plug-ins.

    A plug-in registers a module under the entry point group qdeploy.formats or qdeploy.backends.

    \b
    Example:
      qdeploy formats --json
    """
    from qdeploy.errors import QdeployError
    from qdeploy.registry import registered

    rows = []
    for group, kind in (("formats", "read"), ("backends", "target")):
        for name, entry in registered(group).items():
            try:
                module = entry.load()
                title, writes = module.TITLE, kind == "target" or module.WRITES
            except QdeployError as error:
                title, writes = f"not available: {error.what}", False
            rows.append({"name": name, "kind": kind, "writes": writes, "title": title, "from": entry.origin})
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    shown = [
        [
            r["name"],
            "target" if r["kind"] == "target" else "read, write" if r["writes"] else "read",
            r["title"],
            r["from"],
        ]
        for r in rows
    ]
    console().print(table("formats", ["name", "use", "what", "from"], shown))
