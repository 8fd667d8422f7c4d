"""`qdeploy convert SRC DST`: the main job."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import click

from qdeploy.calibrate.integers import Integers
from qdeploy.cli.fields import GroupedCommand, Taken, merged, passed
from qdeploy.cli.screen import Bar
from qdeploy.cli.tables import console, table
from qdeploy.options import SourceOptions
from qdeploy.sizes import human
from qdeploy.spec import ConversionSpec, Passes, target_options

NOT_RUN = 4
"""Exit code: the output stands, and nothing here could run it."""


def _groups() -> Taken:
    """Who takes which options: reading, the passes, integers, the check, and each target."""
    targets = [(f"Options of --to {name}", settings) for name, settings in target_options().items()]
    return (
        ("Reading", SourceOptions),
        ("Quantizing", Passes),
        ("Networks of integers (--to tvm, --to onnx --integer, --to ir --calibrate)", Integers),
        ("Checking", ConversionSpec),
        *targets,
    )


class _Convert(GroupedCommand):
    notes = {"Quantizing": lambda: _methods()}  # noqa: RUF012

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options of this verb, and those of all targets that there are by now."""
        return [*super().get_params(ctx), *merged(_groups())]


def _methods() -> list[tuple[str, str]]:
    from qdeploy.quantize.specs import usages

    return usages()


@click.command("convert", cls=_Convert, short_help="Convert a checkpoint, and prove that nothing was lost.")
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path())
@click.option(
    "--to",
    default="onnx",
    show_default=True,
    metavar="TARGET",
    help="onnx, native (one file), tvm (integers only), ir (a package), source (a package's source files again), or a "
    "plug-in's target.",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--no-timing", is_flag=True, help="Do not time a quantized network next to its floats (a second).")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    src: str, dst: str, to: str, force: bool, no_timing: bool, as_json: bool, quiet: bool, **values: Any
) -> int:
    """Convert the checkpoint SRC (a folder or file of any readable format) into the folder DST.

    Every stored number is carried as it is: codes as integers, scales as stored. While it reads, the import packs every
    tensor back and compares it with the source's bytes; afterwards the output runs against a numpy reference. DST
    appears only when all of that went well. An interrupted package (--to ir) is continued by the same command. Where
    nothing here can run the output it is written all the same, and the exit code is 4; --check none accepts that.

    \b
    Examples:
      qdeploy convert tiny-llama-gptq out
      qdeploy convert model.Q4_K_M.gguf out --activations int8
      qdeploy convert llama-bf16 out --quantize rtn:int4,group=128
      qdeploy convert model.Q4_K_M.gguf model.qd --to native
      qdeploy convert bitstack-llama model.qd --to native --lower sign-planes --order reference
      qdeploy convert tiny-llama-gptq package --to ir --jobs 2
      qdeploy convert package copy --to source
      qdeploy convert resnet.onnx out --integer strict --calibrate images.npz --weight-bits 4
      qdeploy convert resnet.onnx out --to tvm --calibrate images.npz --allocate size:0.5
      qdeploy convert resnet-int8.tflite out --to tvm --target aarch64+dotprod --form bare
      qdeploy convert all-MiniLM-L6-v2 out --to tvm --calibrate text.npz --axis batch=1 --axis sequence=64
    """
    from qdeploy.conversion import run

    with Bar(hidden=quiet or as_json) as bar:
        spec = ConversionSpec.of(to, passed(values))
        report = run(spec, src, dst, force=force, progress=bar, timing=False if no_timing else None)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    elif not quiet:
        _print(report, dst)
    return NOT_RUN if "not_run" in report else 0


def _print(report: dict[str, Any], dst: str) -> None:
    screen = console()
    source, summary = report["source"], report["summary"]
    rows = _grouped(report)
    screen.print(table(["encoding", "held as", "reason", "tensors", "bytes"], rows, right=(3, 4)))
    family = f" {source['model_type']}" if source["model_type"] else ""
    screen.print(
        f"{source['format']}{family}: {summary['parameters']:,} parameters in {summary['tensors']} tensors, "
        f"{summary['bits per weight']:.2f} bits per weight, {human(summary['bytes'])}"
    )
    for level, count in report["lossless"].items():
        mark = "[green]proven[/]" if count["proven"] == count["of"] else "[yellow]partly[/]"
        if count["of"]:
            screen.print(f"  lossless {level:<13} {mark}  {count['proven']} of {count['of']}")
    for check in report["checks"]:
        screen.print(
            f"  check {check['kind']:<8} {check['name']}: error {check['error']:.1e} (limit {check['limit']:.2g})"
        )
    if "timing" in report:
        times = report["timing"]
        both = f"{times['output'] * 1e3:.3g} ms, in floats {times['floats'] * 1e3:.3g} ms"
        screen.print(f"  time of a run: {times['ratio']:.2f} of the floats' ({both})")
    if "bits" in report.get("integers", {}):
        _print_integers(report["integers"], screen)
    losses = [t["snr_db"] for t in report["tensors"].values() if "snr_db" in t]
    if losses:
        screen.print(f"  quantized here: {len(losses)} tensors, SNR {min(losses):.1f} to {max(losses):.1f} dB")
    for note in report["notes"]:
        screen.print(f"  [yellow]note[/] {note}")
    written = os.path.isfile(os.path.join(dst, "report.json"))  # source files come without one
    place = f"; the report is in {dst}/report.json" if written else ""
    screen.print(f"[bold]{dst}[/] ({report['target']}){place}")


def _print_integers(how: dict[str, Any], screen: Any) -> None:
    counted = Counter(f"W{w}A{a}" for w, a in how["bits"].values())
    bits = ", ".join(f"{name} x {count}" for name, count in sorted(counted.items(), reverse=True))
    data = f"calibrated by {how['method']} on {how['samples']} samples" if "method" in how else "the source's scales"
    screen.print(f"  integers: {bits}; {data}; rounding {how['rounding']}")


def _grouped(report: dict[str, Any]) -> list[list[str]]:
    """One row per distinct way in which tensors are held."""
    unheld = "as it is" if report["target"] in ("ir", "source") else "not used"
    groups: dict[tuple[str, str, str], list[int]] = {}
    for row in report["tensors"].values():
        for form in row.get("forms") or [{"form": unheld, "reason": "", "bytes": row["bytes"]}]:
            key = (row.get("encoding", ""), form["form"], form["reason"])
            groups.setdefault(key, []).append(form["bytes"])
    return [[*key, str(len(sizes)), human(sum(sizes))] for key, sizes in sorted(groups.items())]
