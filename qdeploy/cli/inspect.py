"""`qdeploy inspect PATH`: what a checkpoint, a package or an output is."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from qdeploy.cli.fields import GroupedCommand, fields, passed
from qdeploy.cli.tables import console, table
from qdeploy.options import SourceOptions
from qdeploy.sizes import human

if TYPE_CHECKING:
    from qdeploy.cli.tables import Screen


@fields([("Reading", SourceOptions)])
@click.command("inspect", cls=GroupedCommand, short_help="Show what a checkpoint, package or output is.")
@click.argument("path", type=click.Path())
@click.option("--tensors", is_flag=True, help="One row per tensor instead of one per encoding.")
@click.option("--histogram", is_flag=True, help="How often each code occurs (reads all the codes).")
@click.option("--verify-checksums", "checksums", is_flag=True, help="For packages and native files: recompute all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: str, tensors: bool, histogram: bool, checksums: bool, as_json: bool, **source: Any) -> None:
    """Show the format, the architecture and how every tensor is encoded. Only headers are read, unless asked for more.

    A file of the native runtime also shows its stack, its plan and its metadata.

    \b
    Examples:
      qdeploy inspect tiny-llama-gptq
      qdeploy inspect model.Q4_K_M.gguf --tensors
      qdeploy inspect tiny-llama-gptq --histogram
      qdeploy inspect package --verify-checksums --json
      qdeploy inspect model.qd --tensors
    """
    _import_numpy_without_threads()
    from qdeploy.proof.survey import survey

    report = survey(path, **passed(source), histogram=histogram, checksums=checksums)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _print(report, tensors)


def _import_numpy_without_threads() -> None:
    """Imports numpy, unless it is there already, without the threads of its BLAS: describing multiplies nothing.

    They would take a quarter of the processor time of the whole verb. The environment stays as it was.
    """
    name = "OPENBLAS_NUM_THREADS"
    if "numpy" in sys.modules or name in os.environ:
        return
    os.environ[name] = "1"
    try:
        import_module("numpy")
    finally:
        del os.environ[name]


def _print(report: dict[str, Any], each: bool) -> None:
    screen = console()
    family = f", {report['model_type']}" if report["model_type"] else ""
    screen.print(f"[bold]{report['path']}[/]: {report['title']}{family}")
    rows = [_row(name, t) for name, t in report["tensors"].items()] if each else _grouped(report["tensors"])
    heads = (
        ["tensor", "shape", "encoding", "bits", "bytes"]
        if each
        else ["encoding", "tensors", "parameters", "bits", "bytes"]
    )
    screen.print(table(heads, rows, right=(3, 4) if each else (1, 2, 3, 4)))
    screen.print(
        f"{report['parameters']:,} parameters, {report['bits']:.2f} bits per weight, {human(report['bytes'])}"
        + (f", graph: {report['graph']}" if report["graph"] else "")
    )
    if "network" in report:
        _print_network(screen, report["network"])
    if "rungs" in report:
        _print_file(screen, report)
    for name, counts in report.get("histogram", {}).items():
        screen.print(f"{name}: {_bars(counts)}")
    if "checksums" in report:
        screen.print(f"checksums: {report['checksums']} right")
    for note in report["notes"]:
        screen.print(f"[yellow]note[/] {note}")


def _print_network(screen: Screen, network: dict[str, Any]) -> None:
    """What goes in and comes out of a network, its operators, and what each target lacks."""
    rows = [
        [side, value["name"], value["type"], " x ".join(map(str, value["shape"])) or "one number"]
        for side in ("inputs", "outputs")
        for value in network[side]
    ]
    screen.print(table(["", "name", "type", "shape"], rows))
    version = f"opset {network['version']}: " if network["version"] else ""
    screen.print(version + ", ".join(f"{count} {op}" for op, count in network["operators"].items()))
    for target, ready in network["targets"].items():
        screen.print(f"--to {target}: {ready}")


def _print_file(screen: Screen, report: dict[str, Any]) -> None:
    """What a file of the native runtime holds besides its tensors."""
    file, plan, floor, ceiling = report["file"], report["plan"], report["floor"], report["ceiling"]
    ops = ", ".join(f"{count} {op}" for op, count in plan["ops"].items())
    rows = [
        ["file", f"version {file['version']}, {human(file['bytes'])}, content {file['content_sha256'][:16]}"],
        ["resident", f"{human(file['resident'])} in {file['resident_tensors']} small tensors"],
        ["stack", f"{human(file['stack'])} in {ceiling['rung']} blocks"],
        ["floor", f"rung {floor['rung']}, {human(floor['bytes'])} of weights"],
        ["ceiling", f"rung {ceiling['rung']}, {human(ceiling['bytes'])} of weights (qdeploy plan says what fits)"],
        ["plan", f"{plan['nodes']} nodes: {ops}"],
        ["activations", f"{plan['values']} values in {plan['floats_per_token']:,} floats per token"],
        ["metadata", ", ".join(f"{key} {human(size)}" for key, size in report["metadata"].items())],
        ["conversion", ", ".join(f"{key}={value}" for key, value in report["conversion"].items() if value)],
    ]
    screen.print(table(["part", "what"], rows))
    shown = _some(report["rungs"], floor["rung"])
    lines = [[str(r["rung"]), human(file["resident"] + r["bytes"]), f"{r['error']:.4g}"] for r in shown]
    screen.print(table(["rung", "weights", "predicted loss"], lines, right=(0, 1, 2)))


def _some(rungs: list[dict[str, Any]], floor: int, count: int = 5) -> list[dict[str, Any]]:
    """A few rungs from the floor to everything."""
    able = rungs[max(0, floor - 1) :]
    places = sorted({i * (len(able) - 1) // (count - 1) for i in range(count)}) if able else []
    return [able[i] for i in places]


def _row(name: str, tensor: dict[str, Any]) -> list[str]:
    shape = " x ".join(map(str, tensor["shape"]))
    return [name, shape, tensor["encoding"], f"{tensor['bits']:.2f}", human(tensor["bytes"])]


def _grouped(tensors: dict[str, Any]) -> list[list[str]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for tensor in tensors.values():
        groups.setdefault(tensor["encoding"], []).append(tensor)
    rows = []
    for encoding, members in sorted(groups.items(), key=lambda item: -sum(t["bytes"] for t in item[1])):
        size, count = sum(t["bytes"] for t in members), sum(t["parameters"] for t in members)
        rows.append([encoding, str(len(members)), f"{count:,}", f"{8 * size / max(1, count):.2f}", human(size)])
    return rows


def _bars(counts: list[int]) -> str:
    """Eight heights per code; codes that never occur are dots. 8-bit codes are gathered in 32 bins."""
    if len(counts) > 32:
        step = len(counts) // 32
        counts = [sum(counts[i : i + step]) for i in range(0, len(counts), step)]
    top = max(counts) or 1
    return "".join("·" if c == 0 else "▁▂▃▄▅▆▇█"[min(7, 8 * c // (top + 1))] for c in counts)
