"""`qdeploy convert SRC DST`: the main job."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import click

from qdeploy.cli.screen import Bar, console, table
from qdeploy.cli.values import extents
from qdeploy.sizes import human


def _number(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    return value if value is None else int(value)


def _given(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    return value or None


@click.command("convert", short_help="Convert a checkpoint, and prove that nothing was lost.")
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path())
@click.option(
    "--to",
    default="onnx",
    show_default=True,
    metavar="TARGET",
    help="onnx, native (one file), tvm (integers only), ir (a package), or source (a package's source files again).",
)
@click.option(
    "--activations",
    type=click.Choice(["exact", "int8"]),
    default="exact",
    show_default=True,
    help="exact: float32 arithmetic. int8: activations rounded per block; several times faster.",
)
@click.option(
    "--quantize",
    multiple=True,
    metavar="SPEC",
    help="For float sources: rtn:int4,group=128[,clip=none][,skip=REGEX][,only=REGEX], "
    "bitstack:blocks=8,rank=16[,calibrate=FILE].",
)
@click.option(
    "--lower",
    default="",
    metavar="FORM",
    help="sign-planes[:group=128]: BitStack's blocks as residual sign planes; the loss is reported.",
)
@click.option("--requantize", is_flag=True, help="Let the target round what it cannot hold; the loss is reported.")
@click.option(
    "--check",
    type=click.Choice(["auto", "nodes", "full", "none"]),
    default="auto",
    show_default=True,
    help="How much of the output runs against numpy: one node per form, or the whole model.",
)
@click.option(
    "--layout", metavar="NAME", help="native: elastic (the default; any prefix runs) or whole (codes packed, one rung)."
)
@click.option(
    "--order",
    metavar="NAME",
    help="native: what more memory adds next: gain (per byte, the default), uniform, or reference (BitStack's own).",
)
@click.option(
    "--sensitivities",
    metavar="FILE",
    help="native: weigh the gains by measured perplexities, in the form of BitStack's reduced_ppl_average.json.",
)
@click.option(
    "--integer",
    type=click.Choice(["strict", "fast"]),
    help="onnx: a network of integers. strict: integer operators alone, exact. fast: ONNX Runtime's 8-bit kernels.",
)
@click.option("--target", metavar="NAME", help="tvm: the processor: host (default), x86-64-v3, aarch64+dotprod, ...")
@click.option(
    "--form",
    "forms",
    multiple=True,
    metavar="NAME",
    callback=_given,
    help="tvm: library (model.so for TVM's virtual machine) or bare (an object file and C). Both, if not given.",
)
@click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="NAME=EXTENT",
    callback=extents,
    help="tvm: the extent of a free axis, such as sequence=64 (128 if not given; a batch is 1). May be repeated.",
)
@click.option("--calibrate", metavar="NPZ", help="integers: an array per input, to measure activation scales with.")
@click.option("--calibrate-method", metavar="NAME", help="integers: minmax (the default), percentile, entropy or mse.")
@click.option(
    "--weight-bits",
    type=click.Choice(["8", "4", "2"]),
    callback=_number,
    help="integers: of float weights; the first and the last layer keep 8.",
)
@click.option(
    "--activation-bits",
    type=click.Choice(["8", "4"]),
    callback=_number,
    help="integers: of the inputs of layers; the first and the last layer keep 8.",
)
@click.option("--layer-bits", metavar="FILE", help='integers: of single layers, {"layer": [weights, activations]}.')
@click.option(
    "--allocate",
    metavar="LIMIT",
    help="integers: choose the bits of each layer within size:0.5, size:3.5MB, bops:72G or latency:12ms"
    "[,sensitivity=NAME][,choices=8x8/4x8][,latency=FILE]; see qdeploy allocate.",
)
@click.option("--rounding", metavar="NAME", help="integers: half_up (the default), half_even or half_away.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Shards written at a time.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--format", "format_", default="", metavar="NAME", help="Read as this format instead of sniffing.")
@click.option("--trust-links", is_flag=True, help="Follow links that lead outside of SRC.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    src: str,
    dst: str,
    to: str,
    activations: str,
    quantize: tuple[str, ...],
    lower: str,
    requantize: bool,
    check: Any,
    jobs: int,
    force: bool,
    format_: str,
    trust_links: bool,
    as_json: bool,
    quiet: bool,
    **more: Any,
) -> None:
    """Convert the checkpoint SRC (a folder or file of any readable format) into the folder DST.

    Every stored number is carried as it is: codes as integers, scales as stored. While it reads, the import packs every
    tensor back and compares it with the source's bytes; afterwards the output runs against a numpy reference. DST
    appears only when all of that went well. An interrupted package (--to ir) is continued by the same command.

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
    from qdeploy.conversion import convert

    with Bar(hidden=quiet or as_json) as bar:
        report = convert(
            src,
            dst,
            to=to,
            activations=activations,
            quantize=quantize,
            lower=lower,
            requantize=requantize,
            jobs=jobs,
            check=check,
            force=force,
            format=format_,
            trust_links=trust_links,
            progress=bar,
            **{name: value for name, value in more.items() if value is not None},
        )
    if as_json:
        click.echo(json.dumps(report, indent=1))
    elif not quiet:
        _print(report, dst)


def _print(report: dict[str, Any], dst: str) -> None:
    screen = console()
    source, summary = report["source"], report["summary"]
    rows = _grouped(report)
    screen.print(table("tensors", ["encoding", "held as", "reason", "tensors", "bytes"], rows, right=(3, 4)))
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
    if "bits" in report.get("integers", {}):
        _print_integers(report["integers"], screen)
    losses = [t["snr_db"] for t in report["tensors"].values() if "snr_db" in t]
    if losses:
        screen.print(f"  quantized here: {len(losses)} tensors, SNR {min(losses):.1f} to {max(losses):.1f} dB")
    for note in report["notes"]:
        screen.print(f"  [yellow]note[/] {note}", highlight=False)
    place = f"; the report is in {dst}/report.json" if os.path.isdir(dst) else ""
    screen.print(f"[bold]{dst}[/] ({report['target']}){place}", highlight=False)


def _print_integers(how: dict[str, Any], screen: Any) -> None:
    counted = Counter(f"W{w}A{a}" for w, a in how["bits"].values())
    bits = ", ".join(f"{name} x {count}" for name, count in sorted(counted.items(), reverse=True))
    data = f"calibrated by {how['method']} on {how['samples']} samples" if "method" in how else "the source's scales"
    screen.print(f"  integers: {bits}; {data}; rounding {how['rounding']}", highlight=False)


def _grouped(report: dict[str, Any]) -> list[list[str]]:
    """One row per distinct way in which tensors are held."""
    unheld = "as it is" if report["target"] in ("ir", "source") else "not used"
    found: dict[tuple[str, str, str], list[int]] = {}
    for row in report["tensors"].values():
        for form in row.get("forms") or [{"form": unheld, "reason": "", "bytes": row["bytes"]}]:
            key = (row.get("encoding", ""), form["form"], form["reason"])
            found.setdefault(key, []).append(form["bytes"])
    return [[*key, str(len(sizes)), human(sum(sizes))] for key, sizes in sorted(found.items())]
