"""`qdeploy plan PATH`: what every budget gives: bytes against predicted loss, floor and ceiling, bits per layer."""

from __future__ import annotations

import json
import math
from typing import Any

import click

from qdeploy.cli.fields import GroupedCommand, Taken, fields, passed
from qdeploy.cli.tables import console, table
from qdeploy.options import SourceOptions, options_of
from qdeploy.sizes import human, parse_size
from qdeploy.spec import Passes, options_class

_LEVELS = " ▁▂▃▄▅▆▇█"


def curve(losses: list[float], width: int = 72) -> str:
    """A row of blocks: predicted loss from the floor (left) to everything (right)."""
    if not losses or max(losses) <= 0:
        return ""
    count = min(width, len(losses))
    picked = [losses[i * (len(losses) - 1) // max(1, count - 1)] for i in range(count)]
    top = max(picked)
    return "".join(_LEVELS[min(8, int(8 * loss / top + 0.999))] for loss in picked)


_PASSES = ["quantize", "lower"]
_TAKEN: Taken = (
    ("Reading", SourceOptions),
    ("For checkpoints, as for convert", Passes),
    ("For checkpoints, as for convert", options_class("native")),
)


@fields(_TAKEN, [o.name for part in (SourceOptions, options_class("native")) for o in options_of(part)] + _PASSES)
@click.command("plan", cls=GroupedCommand, short_help="Show what a memory budget gives.")
@click.argument("path", type=click.Path())
@click.option("--budget", metavar="SIZE", help="What would this much give? 300MB")
@click.option("--context", type=click.IntRange(0), default=0, help="Tokens that the cache holds; 0: the model's own.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0: one per core.")
@click.option("--kv", type=click.Choice(["f16", "int8", "f32"]), default="f16", show_default=True, help="Of the cache.")
@click.option("--rows", type=click.IntRange(2, 1000), default=12, show_default=True, help="Rungs in the table.")
@click.option("--tensors", is_flag=True, help="Bits of every tensor instead of every layer.")
@click.option("--plot", metavar="FILE", default="", help="Draw the curve: FILE.png or FILE.svg (qdeploy[plot]).")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    path: str,
    budget: str | None,
    context: int,
    threads: int,
    kv: Any,
    rows: int,
    tensors: bool,
    plot: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Show what memory budgets give: for a native file from its directory, for anything else as it would be converted.

    Nothing is written, and no weights of a native file are read. Everything that the runtime holds is counted.

    \b
    Examples:
      qdeploy plan model.qd
      qdeploy plan model.qd --budget 300MB --json
      qdeploy plan tiny-llama-gptq --budget 2MB --plot curve.svg
    """
    from qdeploy.planning import plan

    if plot:
        from qdeploy.cli.plot import check, draw

        check(plot)
    report = plan(
        path,
        budget=None if budget is None else parse_size(budget),
        context=context,
        threads=threads,
        kv=kv,
        **passed(values),
    )
    if plot:
        draw(report, plot)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report, rows, tensors)


def _print(report: dict[str, Any], rows: int, each: bool) -> None:
    rungs = report["rungs"]
    step = max(1, (len(rungs) - 1) // (rows - 1)) if len(rungs) > 1 else 1
    measured = any("loss" in r for r in rungs)
    shown = [
        r
        for i, r in enumerate(rungs)
        if ("loss" in r if measured else i % step == 0) or r is rungs[-1] or r["rung"] == report["fits"]
    ]
    lines = [
        [
            str(r["rung"]),
            human(r["total"]),
            f"{r['bits']:.2f}",
            f"{r['error']:.4g}",
            f"{math.exp(min(r['loss'], 700.0)):.4g}" if "loss" in r else "",
            "fits" if r["rung"] == report["fits"] else "",
        ]
        for r in shown
    ]
    screen = console()
    heads = ["rung", "memory", "bits/weight", "predicted loss", "perplexity" if measured else "", ""]
    screen.print(table(heads, lines, right=(0, 1, 2, 3, 4)))
    members = report["tensors"] if each else report["layers"]
    kind = "tensor" if each else "layer"
    parts = [[name, f"{m['parameters']:,}", f"{m['bits']:.2f}", human(m["bytes"])] for name, m in members.items()]
    screen.print(table([f"{kind} at rung {report['rung']}", "parameters", "bits", "bytes"], parts, right=(1, 2, 3)))
    drawn = curve([r["error"] for r in rungs])
    if drawn:
        click.echo(f"loss  {drawn}")
    click.echo(f"floor {human(report['floor'])}, ceiling {human(report['ceiling'])}")
    for note in report["notes"]:
        click.echo(f"note  {note}")
