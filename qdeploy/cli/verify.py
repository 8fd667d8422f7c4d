"""`qdeploy verify A B`: are they still the same model?"""

from __future__ import annotations

import json
import sys

import click

from qdeploy.cli.comparison import print_comparison
from qdeploy.cli.screen import Bar


@click.command("verify", short_help="Hold an output against its source; exit 1 if they differ.")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--text", default="", metavar="TEXT", help="Also compare logits on this text.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(a: str, b: str, text: str, as_json: bool) -> None:
    """Hold B (an output, a package, a checkpoint) against its source A.

    Every stored number of B is compared with what A holds: codes and parameters as they are stored, not as rounded
    floats. Exit code 0: equal; 1: they differ; 2: one of them cannot be read.

    \b
    Examples:
      qdeploy verify tiny-llama-gptq out
      qdeploy verify tiny-llama-gptq out --text "To be, or not to be"
      qdeploy verify tiny-llama-gptq package --json
    """
    from qdeploy.proof.compare import verify

    with Bar(hidden=as_json) as bar:
        report = verify(a, b, text=text, progress=bar)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        print_comparison(report, every=False)
        click.echo("equal" if report["equal"] else "DIFFERENT")
    sys.exit(0 if report["equal"] else 1)
