"""Runs data through a network and says between which numbers each of its values lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from qdeploy.calibrate.histogram import Histogram
from qdeploy.calibrate.methods import METHODS
from qdeploy.errors import BadArgumentError, BadFileError
from qdeploy.integer.quantized_value import Float64
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model
from qdeploy.ir.run import Weights, batches, run
from qdeploy.ir.tensor import Array
from qdeploy.passes.fold import fold
from qdeploy.progress import SILENT, Progress
from qdeploy.quantize.smooth import Channels, smoothable
from qdeploy.store.archives import read_arrays

PERCENTILE = 99.99


@dataclass(frozen=True)
class Ranges:
    """What was found.

    Attributes:
        values: (least, greatest) of every float value of the folded graph (`lower.fold`) by its name, clipped as the
            method says.
        method: Its name.
        samples: How many entries of the batch axis were run.
        channels: (least, greatest) of every channel, float64 [K] each, of the values that `lower.smooth` may divide.
    """

    values: Mapping[str, tuple[float, float]]
    method: str
    samples: int
    channels: Channels = field(default_factory=dict)


def calibrate(
    model: Model,
    data: Mapping[str, Array],
    method: str = "minmax",
    *,
    bits: int = 8,
    batch: int = 32,
    percentile: float = PERCENTILE,
    progress: Progress = SILENT,
) -> Ranges:
    """Finds the range of every float value of a model's graph, folded.

    Args:
        model: A network without states.
        data: An array for each input, with the same number of entries along the first axis; one array of any name
            where there is one input.
        method: minmax | percentile | entropy | mse.
        bits: Of the codes that the ranges are for (entropy, mse).
        batch: Entries that are run at a time, where the graph leaves that open.
        percentile: Share of the numbers that is kept (percentile).
        progress: Is told of the entries that are done.

    Raises:
        BadArgumentError: An unknown method, data that does not fit the inputs, or values that are not finite.
    """
    if method not in METHODS:
        raise BadArgumentError("unknown calibration method", found=method, allowed=", ".join(METHODS))
    if not 2 <= bits <= 16 or not 50 < percentile <= 100 or batch < 1:
        raise BadArgumentError(
            "a setting of the calibration is out of range",
            found=f"{bits}, {percentile}, {batch}",
            allowed="2..16 bits, a percentile of 50..100, a batch of 1 or more",
        )
    graph = fold(model.graph, model.tensors)
    feeds, count = fitted(graph, data)
    seen: dict[str, Histogram] = {}
    divided, channels = smoothable(graph), dict[str, tuple[Float64, Float64]]()

    def watch(name: str, x: Array) -> None:
        if x.dtype.kind == "f":
            seen.setdefault(name, Histogram()).add(x)
        if name in divided:
            rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
            low, high = rows.min(axis=0), rows.max(axis=0)
            least, greatest = channels.get(name, (low, high))
            channels[name] = (np.minimum(low, least), np.maximum(high, greatest))

    weights = Weights(model)
    progress.start("calibrating", count, "samples")
    for part in batches(graph, feeds, batch):
        run(graph, part, {}, weights, watch)
        progress.advance(len(next(iter(part.values()))))
    values = {
        name: METHODS[method](histogram, bits, percentile) for name, histogram in seen.items() if histogram.counts.any()
    }
    return Ranges(values, method, count, channels)


def read_data(path: str) -> dict[str, Array]:
    """Returns the arrays of an .npz file; BadArgumentError where it is none, or holds objects."""
    try:
        return read_arrays(path)
    except BadFileError as error:
        raise BadArgumentError(
            f"calibration data cannot be read: {error.what}",
            where=path,
            found=error.found,
            allowed=error.allowed or "an .npz file with an array for each input of the network",
        ) from error


def fitted(graph: Graph, data: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
    """The data by the names of the inputs, and how many entries it has; BadArgumentError where it does not fit."""
    names = [value.name for value in graph.inputs]
    feeds = dict(data)
    if len(names) == len(feeds) == 1:
        feeds = {names[0]: next(iter(feeds.values()))}
    missing = [name for name in names if name not in feeds]
    if missing or graph.states:
        raise BadArgumentError(
            "the calibration data does not fit the network",
            found=", ".join(data) or "nothing",
            allowed=", ".join(names),
        )
    counts = {len(feeds[name]) if feeds[name].ndim else 0 for name in names}
    if len(counts) != 1 or 0 in counts:
        raise BadArgumentError("calibration data with another number of entries for each input", found=sorted(counts))
    return {name: feeds[name] for name in names}, counts.pop()
