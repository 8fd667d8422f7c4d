"""`qdeploy calibrate MODEL --text FILE --out FOLDER`: statistics of the inputs of layers, for quantizers to read."""

from __future__ import annotations

import json
from typing import Any

import click

from qdeploy.cli.fields import GroupedCommand, fields, passed
from qdeploy.cli.screen import Bar
from qdeploy.cli.tables import console, table
from qdeploy.options import SourceOptions


@fields([("Reading", SourceOptions)])
@click.command("calibrate", cls=GroupedCommand, short_help="Measure the inputs of layers on a text.")
@click.argument("model", type=click.Path())
@click.option("--text", "path", metavar="FILE", required=True, help="A text, or token ids as .npz or .npy.")
@click.option("--out", "folder", metavar="FOLDER", required=True, help="Where the statistics go.")
@click.option("--tokens", type=click.IntRange(2), default=65536, show_default=True, help="How many are used at most.")
@click.option("--length", type=click.IntRange(0), default=0, help="Of a sequence; 0: the context, at most 512.")
@click.option("--force", is_flag=True, help="Replace statistics of another model or text.")
@click.option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: str,
    path: str,
    folder: str,
    tokens: int,
    length: int,
    force: bool,
    as_json: bool,
    quiet: bool,
    **how: Any,
) -> None:
    """Run a text through MODEL, a decoder or an encoder of floats, and keep statistics of the inputs of its layers.

    For each distinct input: second moments, means, ranges and percentiles. A run that was stopped is continued by the
    same command. Quantizers take the folder where they take a text.

    \b
    Examples:
      qdeploy calibrate base-model --text book.txt --out statistics
      qdeploy convert base-model model.qd --to native --quantize ladder:calibrate=statistics
    """
    from qdeploy.calibrate.layers import calibrate_layers
    from qdeploy.conversion import load

    with Bar(hidden=quiet or as_json) as bar:
        opened = load(model, **passed(how))
        report = calibrate_layers(opened, path, folder, tokens=tokens, length=length, force=force, progress=bar)
    if as_json:
        click.echo(json.dumps(report))
    elif not quiet:
        rows = [[row["name"], str(row["columns"]), ", ".join(row["weights"])] for row in report["inputs"]]
        console().print(table(["input", "columns", "weights"], rows, right=(1,)))
        click.echo(f"{folder}: {len(rows)} inputs on {report['tokens']:,} tokens")
