"""The command line: one file per verb, each imported when it is called.

The table below is all that `qdeploy --help` needs, so that help and version answer before numpy is imported.
Errors of the project's family are printed in three lines and exit with 2; `--debug`, an option of every verb, shows the
trace. Whatever else is raised is a defect of the program: three lines as well, and exit code 3.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from qdeploy.version import VERSION

if TYPE_CHECKING:
    from qdeploy.errors import QdeployError

VERBS = {
    "convert": "Convert a checkpoint, and prove that nothing was lost.",
    "inspect": "Show what a checkpoint, package or output is.",
    "verify": "Hold an output against its source; exit 1 if they differ.",
    "diff": "Show how far two models are apart, tensor by tensor.",
    "run": "Write text with a native model inside a memory budget.",
    "chat": "Talk with a native model in the terminal.",
    "serve": "Serve a native model to OpenAI clients and to a page.",
    "plan": "Show what a memory budget gives.",
    "calibrate": "Measure the inputs of layers on a text.",
    "allocate": "Choose bits per layer within a limit.",
    "eval": "Measure perplexity, and distance from another model.",
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
        verb: click.Command = import_module(f"qdeploy.cli.{cmd_name}").command
        if not any(parameter.name == "debug" for parameter in verb.params):
            verb.params.append(_debug_option())
        return verb

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


def _debug_option() -> click.Option:
    def note(ctx: click.Context, option: click.Parameter, on: bool) -> None:
        if on:
            os.environ["QDEPLOY_DEBUG"] = "1"

    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=note, help="Show the trace of an error."
    )


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
    """Entry point of the `qdeploy` command.

    It exits with 0, 1 (models differ), 2 (bad input), 3 (a defect of the program), 4 (the output stands, and nothing
    here could run it) or 130 (interrupted).
    """
    gc.set_threshold(20_000)  # importing allocates much that stays: collecting after every 700 objects finds nothing
    try:
        code: Any = cli.main(args, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(_interrupted(sys.argv[1:] if args is None else args), err=True)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        code = 130 if _was_interrupted(error) else _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupted(args: list[str]) -> str:
    """What an interruption leaves: only packages are continued."""
    if "convert" not in args:
        return "interrupted"
    packs = "--to=ir" in args or any(pair == ("--to", "ir") for pair in itertools.pairwise(args))
    continued = ", and the same command continues" if packs else ""
    return f"interrupted; nothing stands under the output's name{continued}"


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an interruption stands behind an error: a library may have turned it into one of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _report(error: Exception) -> int:
    from qdeploy.errors import QdeployError

    if os.environ.get("QDEPLOY_DEBUG"):
        traceback.print_exception(error)
    known = error if isinstance(error, QdeployError) else _named(error)
    head, *rest = known.lines()
    click.echo(click.style("error: ", fg="red", bold=True) + head, err=True)
    for line in rest:
        click.echo(f"  {line}", err=True)
    return known.exit_code


def _named(error: Exception) -> QdeployError:
    """An error from outside of the family as one of it: what the system refused, or a defect of the program."""
    from qdeploy.errors import DefectError, OutputError
    from qdeploy.extras import EXTRAS, missing

    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXTRAS:
        return missing(error.name or "")
    if isinstance(error, MemoryError):
        return OutputError("the memory of this machine does not suffice", found=str(error)[:200])
    if isinstance(error, OSError) and error.strerror:
        return OutputError(f"the system refused: {error.strerror}", where=str(error.filename or ""))
    return DefectError(
        "internal error, please report it",
        found=f"{type(error).__name__}: {error}",
        todo="Run the same command with --debug, and report what it shows together with the input.",
    )
