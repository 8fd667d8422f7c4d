"""`qdeploy verify A B`: are they still the same model? `verify OUT --integer-only`: does it compute with integers?"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from qdeploy.cli.comparison import print_comparison
from qdeploy.cli.screen import Bar
from qdeploy.cli.tables import console, table


@click.command("verify", short_help="Hold an output against its source; exit 1 if they differ.")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path(), required=False)
@click.option("--integer-only", is_flag=True, help="Prove that the output A computes with integers alone; or exit 1.")
@click.option("--text", default="", metavar="TEXT", help="Also compare logits on this text.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(a: str, b: str | None, integer_only: bool, text: str, as_json: bool) -> None:
    """Hold B (an output, a package, a checkpoint) against its source A.

    Every stored number of B is compared with what A holds: codes and parameters as they are stored, not as rounded
    floats. Exit code 0: equal; 1: they differ; 2: one of them cannot be read.

    \b
    Examples:
      qdeploy verify tiny-llama-gptq out
      qdeploy verify tiny-llama-gptq out --text "To be, or not to be"
      qdeploy verify tiny-llama-gptq package --json
      qdeploy verify resnet-tvm --integer-only
    """
    if integer_only == (b is not None):
        raise click.UsageError("verify takes two paths, or one with --integer-only")
    if b is None:
        _prove(a, as_json)
    from qdeploy.proof.compare import verify

    assert b is not None
    with Bar(hidden=as_json) as bar:
        report = verify(a, b, text=text, progress=bar)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        print_comparison(report, every=False)
        click.echo("equal" if report["equal"] else "DIFFERENT")
    sys.exit(0 if report["equal"] else 1)


def _prove(path: str, as_json: bool) -> None:
    """Prints what was looked at and found; exits."""
    from qdeploy.proof.integers import integer_only

    report = integer_only(path)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        rows = [[name, _shown(value)] for name, value in report.items() if name != "integer_only"]
        console().print(table(["", "found"], rows, right=(1,)))
        for name in ("floats", "externs", "instructions"):
            for line in (report.get(name) or [])[:10]:
                click.echo(f"  {name}: {line}")
        click.echo("integers only" if report["integer_only"] else "NOT INTEGERS ONLY")
    sys.exit(0 if report["integer_only"] else 1)


def _shown(value: Any) -> str:
    if value is None:
        return "not looked at"
    return f"{len(value) if isinstance(value, list) else value:,}"
