"""`qdeploy allocate MODEL`: bits per layer from sensitivities and a limit, for `qdeploy convert --layer-bits`."""

from __future__ import annotations

import json
from typing import Any

import click

from qdeploy.cli.fields import GroupedCommand, fields, passed
from qdeploy.cli.screen import Bar
from qdeploy.cli.tables import console, table
from qdeploy.limits import AllocationSpec
from qdeploy.options import SourceOptions


@fields([("Allocation", AllocationSpec), ("Reading", SourceOptions)])
@click.command("allocate", cls=GroupedCommand, short_help="Choose bits per layer within a limit.")
@click.argument("model", type=click.Path())
@click.option("--calibrate", "data", metavar="NPZ", required=True, help="An array per input, to measure losses with.")
@click.option("--out", default="", metavar="FILE", help="Write the bits, for convert --layer-bits.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: str,
    data: str,
    limit: str | None,
    out: str,
    force: bool,
    as_json: bool,
    quiet: bool,
    **how: Any,
) -> None:
    """Choose the bits of every convolution and linear layer of MODEL, a float network: the least loss within a limit.

    \b
    Examples:
      qdeploy allocate resnet.onnx --calibrate images.npz --limit size:0.5 --out bits.json
      qdeploy convert resnet.onnx out --to tvm --calibrate images.npz --layer-bits bits.json
      qdeploy allocate resnet.onnx --calibrate images.npz --limit bops:72G --choices 8x8,4x4 --sensitivity hessian
      qdeploy bench resnet.onnx --layers --threads 1 --out table.json
      qdeploy allocate resnet.onnx --calibrate images.npz --limit latency:12ms --latency table.json
    """
    from qdeploy.allocation import allocate

    with Bar(hidden=quiet or as_json) as bar:
        report = allocate(model, data, limit or "", out=out, force=force, progress=bar, **passed(how))
    if as_json:
        click.echo(json.dumps(report))
    elif not quiet:
        _print(report)
        if out:
            click.echo(f"{out}: for qdeploy convert --layer-bits")


def _trace(row: dict[str, Any]) -> str:
    if "trace" not in row:
        return ""
    return f"{row['trace']:.2e}" + ("" if row["trace_error"] is None else f" ± {row['trace_error']:.0e}")


def _print(report: dict[str, Any]) -> None:
    from qdeploy.limits import show_cost

    limit, layers = report["limit"], report["layers"]
    kind = limit["kind"]
    choices = list(dict.fromkeys(choice for row in layers.values() for choice in row["loss"] if not row["fixed"]))
    traced = any("trace" in row for row in layers.values())
    heads = ["layer", "weights", *(["trace / weights"] if traced else []), *(f"loss {c}" for c in choices), kind]
    heads += ["bits", ""]
    rows = []
    for name, row in layers.items():
        trace = [_trace(row)] if traced else []
        losses = [f"{row['loss'][c]:.3e}" if c in row["loss"] and not row["fixed"] else "" for c in choices]
        note = "fixed" if row["fixed"] else "tied" if row["tied"] else ""
        rows.append(
            [
                name,
                f"{row['weights']:,}",
                *trace,
                *losses,
                show_cost(kind, row["cost"][row["chosen"]]),
                row["chosen"],
                note,
            ]
        )
    total = f"{sum(row['weights'] for row in layers.values()):,}"
    rows.append(
        ["total", total, *([""] if traced else []), *([""] * len(choices)), show_cost(kind, report["cost"]), "", ""]
    )
    screen = console()
    screen.print(table(heads, rows, right=tuple(range(1, len(heads) - 2))))
    least, greatest, allowed, cost = (
        show_cost(kind, n) for n in (limit["least"], limit["greatest"], limit["cost"], report["cost"])
    )
    samples = "" if report["sensitivity"] == "weights" else f" on {report['samples']} samples"
    screen.print(
        f"{kind} {cost} of at most {allowed} ({limit['asked']}; from {least} to {greatest}); loss "
        f"{report['loss']:.3e} by {report['sensitivity']}{samples}",
    )
