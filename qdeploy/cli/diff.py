"""`qdeploy diff A B`: how far are two models apart?"""

from __future__ import annotations

import json

import click

from qdeploy.cli.comparison import print_comparison
from qdeploy.cli.screen import Bar


@click.command("diff", short_help="Show how far two models are apart, tensor by tensor.")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--text", default="", metavar="TEXT", help="Also compare logits on this text.")
@click.option("--all", "every", is_flag=True, help="Show equal tensors, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(a: str, b: str, text: str, every: bool, as_json: bool) -> None:
    """Compare two models tensor by tensor: codes equal or not, greatest error, signal-to-noise ratio.

    \b
    Examples:
      qdeploy diff tiny-llama tiny-llama-gptq --text "To be, or not to be"
      qdeploy diff before after --all
    """
    from qdeploy.proof.compare import diff

    with Bar(hidden=as_json) as bar:
        report = diff(a, b, text=text, progress=bar)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        print_comparison(report, every)
