"""`qdeploy inspect PATH`: what a checkpoint, a package or an output is."""

from __future__ import annotations

import json
from typing import Any

import click

from qdeploy.cli.screen import console, table
from qdeploy.sizes import human


@click.command("inspect", short_help="Show what a checkpoint, package or output is.")
@click.argument("path", type=click.Path())
@click.option("--tensors", is_flag=True, help="One row per tensor instead of one per encoding.")
@click.option("--histogram", is_flag=True, help="How often each code occurs (reads all the codes).")
@click.option("--verify-checksums", "checksums", is_flag=True, help="For a package: recompute every SHA-256.")
@click.option("--format", "format_", default="", metavar="NAME", help="Read as this format instead of sniffing.")
@click.option("--trust-links", is_flag=True, help="Follow links that lead outside of PATH.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    path: str, tensors: bool, histogram: bool, checksums: bool, format_: str, trust_links: bool, as_json: bool
) -> None:
    """Show the format, the architecture and how every tensor is encoded. Only headers are read, unless asked for more.

    \b
    Examples:
      qdeploy inspect tiny-llama-gptq
      qdeploy inspect model.Q4_K_M.gguf --tensors
      qdeploy inspect tiny-llama-gptq --histogram
      qdeploy inspect package --verify-checksums --json
    """
    from qdeploy.proof.survey import survey

    found = survey(path, format_, trust_links, histogram=histogram, checksums=checksums)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        _print(found, tensors)


def _print(found: dict[str, Any], each: bool) -> None:
    screen = console()
    family = f", {found['model_type']}" if found["model_type"] else ""
    screen.print(f"[bold]{found['path']}[/]: {found['title']}{family}", highlight=False)
    rows = [_row(name, t) for name, t in found["tensors"].items()] if each else _grouped(found["tensors"])
    heads = (
        ["tensor", "shape", "encoding", "bits", "bytes"]
        if each
        else ["encoding", "tensors", "parameters", "bits", "bytes"]
    )
    screen.print(table("tensors", heads, rows, right=(3, 4) if each else (1, 2, 3, 4)))
    screen.print(
        f"{found['parameters']:,} parameters, {found['bits']:.2f} bits per weight, {human(found['bytes'])}"
        + (f", graph: {found['graph']}" if found["graph"] else "")
    )
    for name, counts in found.get("histogram", {}).items():
        screen.print(f"{name}: {_bars(counts)}", highlight=False)
    if "checksums" in found:
        screen.print(f"checksums: {found['checksums']} right")
    for note in found["notes"]:
        screen.print(f"[yellow]note[/] {note}", highlight=False)


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
