"""`qdeploy allocate MODEL`: bits per layer from sensitivities and a limit, for `qdeploy convert --layer-bits`."""

from __future__ import annotations

import json
from typing import Any

import click

from qdeploy.cli.screen import Bar, console, table


@click.command("allocate", short_help="Choose bits per layer within a limit.")
@click.argument("model", type=click.Path())
@click.option("--calibrate", "data", metavar="NPZ", required=True, help="An array per input, to measure losses with.")
@click.option(
    "--limit",
    required=True,
    metavar="KIND:AMOUNT",
    help="Of size (bytes of weights), bops (products times the bits of both factors) or latency. A number from 0 to 1 "
    "lies between the least and the greatest cost there is; else it has a unit: size:3.5MB, bops:72G, latency:12ms.",
)
@click.option(
    "--sensitivity",
    default="output",
    show_default=True,
    metavar="NAME",
    help="output: error of the network's outputs with one layer changed. hessian: trace of the Hessian times the error "
    "of the weights (HAWQ). weights: error of the layer's own outputs, the fastest.",
)
@click.option(
    "--choices", default="8,4", show_default=True, metavar="LIST", help="Bits: 8,4,2, or weights x inputs: 8x8,4x8,4x4."
)
@click.option("--latency", default="", metavar="FILE", help="A table that qdeploy bench MODEL --layers wrote.")
@click.option(
    "--fixed",
    default="first,last",
    show_default=True,
    metavar="LIST",
    help="Layers that keep 8 bits: first, last, names of weights, or none.",
)
@click.option("--ties/--no-ties", default=True, show_default=True, help="The same bits for layers that take one value.")
@click.option(
    "--samples", type=click.IntRange(0), default=0, help="Measured on; 0: 64 of the data (output), 256 (hessian)."
)
@click.option("--out", default="", metavar="FILE", help="Write the bits, for convert --layer-bits.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.option("--format", "format_", default="", metavar="NAME", help="Read as this format instead of sniffing.")
@click.option("--trust-links", is_flag=True, help="Follow links that lead outside of MODEL.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    model: str,
    data: str,
    limit: str,
    out: str,
    force: bool,
    format_: str,
    trust_links: bool,
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
        found = allocate(
            model, data, limit, out=out, force=force, format=format_, trust_links=trust_links, progress=bar, **how
        )
    if as_json:
        click.echo(json.dumps(found))
    elif not quiet:
        _print(found)
        if out:
            click.echo(f"{out}: for qdeploy convert --layer-bits")


def _trace(row: dict[str, Any]) -> str:
    if "trace" not in row:
        return ""
    return f"{row['trace']:.2e}" + ("" if row["trace_error"] is None else f" ± {row['trace_error']:.0e}")


def _print(found: dict[str, Any]) -> None:
    from qdeploy.limits import show_cost

    limit, layers = found["limit"], found["layers"]
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
        ["total", total, *([""] if traced else []), *([""] * len(choices)), show_cost(kind, found["cost"]), "", ""]
    )
    screen = console()
    screen.print(table("", heads, rows, right=tuple(range(1, len(heads) - 2))))
    least, greatest, allowed, cost = (
        show_cost(kind, n) for n in (limit["least"], limit["greatest"], limit["cost"], found["cost"])
    )
    samples = "" if found["sensitivity"] == "weights" else f" on {found['samples']} samples"
    screen.print(
        f"{kind} {cost} of at most {allowed} ({limit['asked']}; from {least} to {greatest}); loss "
        f"{found['loss']:.3e} by {found['sensitivity']}{samples}",
        highlight=False,
    )
