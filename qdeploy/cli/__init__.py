"""The command line: one file per verb, each imported when it is called.

The table below is all that `qdeploy --help` needs, so that help and version answer before numpy is imported.
Errors of the project's family are printed in three lines and exit with 2; `--debug` shows the trace.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import Any

import click

from qdeploy.version import VERSION

VERBS = {
    "convert": "Convert a checkpoint, and prove that nothing was lost.",
    "inspect": "Show what a checkpoint, package or output is.",
    "verify": "Hold an output against its source; exit 1 if they differ.",
    "diff": "Show how far two models are apart, tensor by tensor.",
    "run": "Write text with a native model inside a memory budget.",
    "plan": "Show what a memory budget gives.",
    "allocate": "Choose bits per layer within a limit.",
    "bench": "Measure a native model, or single layers, on this machine.",
    "formats": "List what can be read and written.",
}


class _Verbs(click.Group):
    """A group whose commands are imported when they are run; their short help stands in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        found: click.Command = import_module(f"qdeploy.cli.{cmd_name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from difflib import get_close_matches

        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            near = get_close_matches(name, VERBS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, "-V", "--version", prog_name="qdeploy", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the trace of an error.")
def cli(debug: bool) -> None:
    """Any quantized checkpoint, any edge target, and proof that nothing was lost.

    \b
    qdeploy convert tiny-llama-gptq out          GPTQ in, ONNX out, proven
    qdeploy inspect tiny-llama-gptq              what is in there
    qdeploy verify tiny-llama-gptq out           is it still the same model
    """
    if debug:
        os.environ["QDEPLOY_DEBUG"] = "1"


def main(args: list[str] | None = None) -> None:
    """Entry point of the `qdeploy` command; exits with 0, 1 (models differ), 2 (bad input) or 130 (interrupted)."""
    gc.set_threshold(20_000)  # importing allocates much that stays: collecting after every 700 objects finds nothing
    try:
        code: Any = cli.main(args, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing stands under the output's name, the same command continues", err=True)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        code = _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception) -> int:
    from qdeploy.errors import QdeployError

    if not isinstance(error, QdeployError) or os.environ.get("QDEPLOY_DEBUG"):
        raise error
    head, *rest = error.lines()
    click.echo(click.style("error: ", fg="red", bold=True) + head, err=True)
    for line in rest:
        click.echo(f"  {line}", err=True)
    return error.exit_code
