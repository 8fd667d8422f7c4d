"""`qdeploy plan MODEL.qd`: what every budget gives: bytes against predicted loss, floor and ceiling."""

from __future__ import annotations

import json
from typing import Any

import click

from qdeploy.cli.screen import console, table
from qdeploy.sizes import human, parse_size

_LEVELS = " ▁▂▃▄▅▆▇█"


def curve(losses: list[float], width: int = 72) -> str:
    """A row of blocks: predicted loss from the floor (left) to everything (right)."""
    if not losses or max(losses) <= 0:
        return ""
    count = min(width, len(losses))
    picked = [losses[i * (len(losses) - 1) // max(1, count - 1)] for i in range(count)]
    top = max(picked)
    return "".join(_LEVELS[min(8, int(8 * loss / top + 0.999))] for loss in picked)


@click.command("plan", short_help="Show what a memory budget gives.")
@click.argument("model", type=click.Path())
@click.option("--budget", metavar="SIZE", help="What would this much give? 300MB")
@click.option("--rows", type=click.IntRange(2, 1000), default=12, show_default=True, help="Rungs in the table.")
@click.option("--json", "as_json", is_flag=True, help="Print every rung as JSON.")
def command(model: str, budget: str | None, rows: int, as_json: bool) -> None:
    """Show the rungs of MODEL, a file that `qdeploy convert --to native` wrote: memory against predicted loss.

    \b
    Examples:
      qdeploy plan model.qd
      qdeploy plan model.qd --budget 300MB --json
    """
    found = _plan(model, None if budget is None else parse_size(budget))
    if as_json:
        click.echo(json.dumps(found))
        return
    rungs = found["rungs"]
    step = max(1, (len(rungs) - 1) // (rows - 1)) if len(rungs) > 1 else 1
    shown = [r for i, r in enumerate(rungs) if i % step == 0 or r is rungs[-1] or r["rung"] == found["fits"]]
    lines = [
        [
            str(r["rung"]),
            human(r["total"]),
            f"{r['bits']:.2f}",
            f"{r['error']:.4g}",
            "fits" if r["rung"] == found["fits"] else "",
        ]
        for r in shown
    ]
    console().print(table("", ["rung", "memory", "bits/weight", "predicted loss", ""], lines, right=(0, 1, 2, 3)))
    drawn = curve([r["error"] for r in rungs])
    if drawn:
        click.echo(f"loss  {drawn}")
    click.echo(f"floor {human(found['floor'])}, ceiling {human(found['ceiling'])}")


def _plan(path: str, budget: int | None) -> dict[str, Any]:
    from qdeploy.native import Runtime

    with Runtime(path) as runtime:
        stats, parameters = runtime.stats, max(1, runtime.parameters)
        rungs = runtime.rungs()
    above = stats["ceiling"] - rungs[-1][0] if rungs else 0  # what does not depend on the rung
    least = stats["floor"] - above
    found = [
        {"rung": i, "stack": size, "total": above + size, "bits": 8 * size / parameters, "error": error}
        for i, (size, error) in enumerate(rungs, 1)
        if size >= least
    ]
    fits = [r["rung"] for r in found if budget is not None and r["total"] <= budget]
    return {"floor": stats["floor"], "ceiling": stats["ceiling"], "budget": budget,
            "fits": fits[-1] if fits else None, "rungs": found}  # fmt: skip
