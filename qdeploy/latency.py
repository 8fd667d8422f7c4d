"""A table of how long layers take on this machine, by their shapes and bits: what `allocate` holds a limit against.

    {"network": "resnet20.onnx", "machine": {"cpu", "machine", "cores"}, "target": "x86-64-v3", "threads": 1,
     "axes": {"N": 1}, "layers": {"Conv 1x16x32x32 by 16x16x3x3, pads 1 1 1 1": {"8x8": seconds, "4x8": seconds}}}

Layers of the same shape are one row, so that the table of one network may serve another.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy import registry
from qdeploy.contracts.backends import LayerTimer
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.integer.layer_shapes import LayerShape, fixed_axes, folded, layer_shapes
from qdeploy.ir.graph import Graph
from qdeploy.ir.tensor import Array
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.allocate import Widths, parse_choices, show_choice
from qdeploy.store.output import refuse_existing, write_json

Table = dict[str, Any]


def latency_table(
    path: str | os.PathLike[str],
    *,
    choices: str = "8,4",
    target: str = "host",
    threads: int = 0,
    axes: Mapping[str, int] | None = None,
    out: str | os.PathLike[str] = "",
    force: bool = False,
    format: str = "",
    trust_links: bool = False,
    progress: Progress = SILENT,
) -> Table:
    """Compiles every distinct layer of a float network alone, in integers by TVM, and times it on this machine.

    Args:
        path: Any readable checkpoint with a network.
        choices: Bits: "8,4" or "8x8,4x4" (weights x activations).
        target: A target of the TVM backend that this machine runs.
        threads: Of a layer; 0: one per core.
        axes: Sizes of free axes; by default a batch is 1 and "sequence" 128.
        out: Where to write the table as JSON; empty: nowhere.
        force: Replace that file.
        format: The reader's name, where sniffing is not wanted.
        trust_links: Follow links that lead outside of the source folder.
        progress: Told of layers compiled and rounds timed.

    Returns:
        The table; see above.

    Raises:
        QdeployError: No such choices, no layers, TVM is absent, or a layer has no kernel there.
    """
    widths = parse_choices(choices)
    if out:
        refuse_existing(Path(out), force, file=True)
    graph, weights = folded(registry.open_model(path, format, trust_links))
    sizes = fixed_axes(graph, axes or {})
    shapes = _distinct(graph, weights, sizes)
    if not shapes:
        raise UnsupportedError("the network has no convolutions or linear layers", where=str(path))
    threads = threads or os.cpu_count() or 1
    times = _timer("tvm").layer_times(list(shapes.values()), widths, target=target, threads=threads, progress=progress)
    table = {
        "network": Path(path).name,
        "machine": _machine(),
        "target": times.target,
        "threads": threads,
        "axes": sizes,
        "layers": {
            key: {show_choice(bits): seconds for bits, seconds in row.items()}
            for key, row in zip(shapes, times.seconds, strict=True)
        },
    }
    if out:
        write_json(Path(out), table, force)
    return table


def _timer(name: str) -> LayerTimer:
    """The part of a backend that times layers."""
    timer = registry.backend(name).layers
    if timer is None:
        raise UnsupportedError("layers are not timed by this target", found=name, allowed="tvm")
    return timer


def _distinct(
    graph: Graph, weights: Mapping[str, Array], sizes: Mapping[str, int]
) -> dict[str, tuple[LayerShape, Array]]:
    """One layer of each shape, by its key, with its weight."""
    shapes: dict[str, tuple[LayerShape, Array]] = {}
    for name, shape in layer_shapes(graph, weights, sizes).items():
        shapes.setdefault(shape.key, (shape, _oriented(weights[name], shape)))
    return shapes


def read_table(path: str | os.PathLike[str]) -> Table:
    """Reads what `latency_table` wrote; BadArgumentError where it is something else."""
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadArgumentError(f"a latency table cannot be read: {error}", where=str(path)) from error
    rows = tree.get("layers") if isinstance(tree, dict) else None
    fine = (
        isinstance(rows, dict)
        and isinstance(tree.get("axes", {}), dict)
        and all(
            isinstance(row, dict) and all(type(n) in (int, float) and 0 <= n < float("inf") for n in row.values())
            for row in rows.values()
        )
    )
    if not fine:
        raise BadArgumentError(
            "not a latency table",
            where=str(path),
            allowed='{"layers": {shape: {bits: seconds}}, "axes": {name: extent}, ...}',
            todo="Make one: qdeploy bench MODEL --layers --out table.json",
        )
    return {"axes": {}, **tree}


def latencies(
    table: Table, graph: Graph, weights: Mapping[str, Array], options: Mapping[str, Sequence[Widths]], where: str = ""
) -> dict[str, dict[Widths, float]]:
    """Seconds of each layer at each of its choices.

    Args:
        table: See above.
        graph: Folded.
        weights: By name.
        options: Choices by layer.
        where: The table's file.

    Raises:
        BadArgumentError: The table misses a layer or a choice.
    """
    shapes = layer_shapes(graph, weights, fixed_axes(graph, table["axes"]))
    seconds: dict[str, dict[Widths, float]] = {}
    for name, choices in options.items():
        row = table["layers"].get(shapes[name].key, {})
        missing = [show_choice(bits) for bits in choices if show_choice(bits) not in row]
        if missing:
            raise BadArgumentError(
                "the latency table misses a layer of this network, or a choice of bits of it",
                where=where or name,
                found=f"{shapes[name].key} ({name}) at {', '.join(missing)}",
                todo="Measure it: qdeploy bench MODEL --layers --choices 8,4",
            )
        seconds[name] = {bits: float(row[show_choice(bits)]) for bits in choices}
    return seconds


def _oriented(weight: Array, shape: LayerShape) -> Array:
    """The weight of a layer with its outputs first."""
    return weight if weight.shape == shape.weight else np.ascontiguousarray(weight.T)


def _machine() -> dict[str, Any]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
    }
