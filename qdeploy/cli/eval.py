"""`qdeploy eval MODEL --text FILE`: perplexity, and how near a model is to another, at one budget or several."""

from __future__ import annotations

import json
from typing import Any

import click

from qdeploy.cli.screen import Bar
from qdeploy.cli.tables import console, table
from qdeploy.sizes import human

_NUMBERS = (
    ("loss", ".4f"),
    ("stored", ".4f"),
    ("perplexity", ".4f"),
    ("divergence", ".5f"),
    ("top1", ".2%"),
    ("cosine", ".5f"),
)


@click.command("eval", short_help="Measure perplexity, and distance from another model.")
@click.argument("model", type=click.Path())
@click.option("--text", metavar="FILE", required=True, help="A text, or token ids as .npz or .npy.")
@click.option("--against", metavar="MODEL", default="", help="Divergence from this one, and how often both agree.")
@click.option("--budgets", type=click.IntRange(1, 1000), default=1, show_default=True, help="Rungs of a native file.")
@click.option("--tokens", type=click.IntRange(2), default=16384, show_default=True, help="How many are used at most.")
@click.option("--length", type=click.IntRange(0), default=0, help="Of a sequence; 0: the context, at most 512.")
@click.option("--activations", type=click.Choice(["int8", "exact"]), default="int8", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="0: one per core.")
@click.option("--plot", metavar="FILE", default="", help="Draw all budgets: FILE.png or FILE.svg (qdeploy[plot]).")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def command(
    model: str,
    text: str,
    against: str,
    budgets: int,
    tokens: int,
    length: int,
    activations: Any,
    threads: int,
    plot: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure MODEL, any readable checkpoint, package or native file, on a text: a decoder or an encoder.

    \b
    Examples:
      qdeploy eval model.qd --text held-out.txt --budgets 8
      qdeploy eval model.qd --text held-out.txt --against base-model
      qdeploy eval model.qd --text held-out.txt --budgets 8 --plot curve.svg
    """
    from qdeploy.evaluation import evaluate

    if plot:
        from qdeploy.cli.plot import check, draw_measured

        check(plot)
    with Bar(hidden=quiet or as_json) as bar:
        report = evaluate(
            model,
            text,
            against=against,
            budgets=budgets,
            tokens=tokens,
            length=length,
            activations=activations,
            threads=threads,
            progress=bar,
        )
    if plot:
        draw_measured(report, plot)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    points = report["points"]
    numbers = [(name, form) for name, form in _NUMBERS if any(name in point for point in points)]
    rungs = any("rung" in point for point in points)
    rows = []
    for point in points:
        where = [str(point["rung"]), human(point["bytes"])] if rungs else []
        rows.append([*where, *(format(point[name], form) if name in point else "" for name, form in numbers)])
    heads = [*(["rung", "weights"] if rungs else []), *(name for name, _ in numbers)]
    console().print(table(heads, rows, right=tuple(range(len(heads)))))
    click.echo(
        f"{report['path']}: {report['tokens']:,} tokens"
        + (f", against {report['against']}" if report["against"] else "")
    )
