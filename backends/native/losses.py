"""What rungs of a written file lose on a text that nothing was fitted to; stored in the file's metadata.

    losses   {"tokens": n, "points": [[rung, loss per token in nats], ...]}, filled up with blanks to a fixed size

The size is fixed so that the metadata can be written once without the numbers, and again with them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qdeploy.backends.native.naming import FILE
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Float32
from qdeploy.progress import Progress
from qdeploy.quantize.samples import Samples, read_samples

SIZE = 1024
POINTS, CHOOSING = 10, 5
"""Rungs that are stored, and that two orders are compared at."""
_MOST_TOKENS = 8192


def blank() -> bytes:
    """What stands in the metadata before anything was measured."""
    return packed({}, 0)


def packed(losses: Mapping[int, float], tokens: int) -> bytes:
    """The entry of the metadata."""
    points = [[rung, round(loss, 6)] for rung, loss in sorted(losses.items())]
    return json.dumps({"tokens": tokens, "points": points}).encode().ljust(SIZE)


def unpacked(entry: bytes | None) -> dict[int, float]:
    """The losses by rung; empty where there are none, or the entry says something else."""
    try:
        points = json.loads(entry or b"{}").get("points", [])
        return {int(rung): float(loss) for rung, loss in points}
    except (ValueError, TypeError, AttributeError):
        return {}


def held_back(model: Model, text: str) -> Samples:
    """The samples that losses are measured on."""
    samples = read_samples(model, text).parted()[1]
    count = max(1, int(np.searchsorted(np.cumsum(samples.lengths), _MOST_TOKENS)))
    return Samples(samples.ids[:count], samples.lengths[:count])


def measured(
    folder: Path, sizes: list[int], floor: int, samples: Samples, count: int, progress: Progress
) -> dict[int, float]:
    """Losses of a written file at rungs that are evenly apart in bytes, the floor and everything among them.

    Args:
        folder: Where the file is.
        sizes: Bytes of the stack at each rung from the first on.
        floor: The least rung that runs.
        samples: What it is run on.
        count: Of rungs.
        progress: Told of sequences.
    """
    from qdeploy.native import Runtime
    from qdeploy.native.rungs import evenly_apart

    rungs = evenly_apart(sizes, floor, count)
    sums = dict.fromkeys(rungs, 0.0)
    progress.start("losses of rungs", len(samples.ids), "sequences")
    with Runtime(str(folder / FILE)) as runtime:
        for ids, length in zip(samples.ids, samples.lengths, strict=True):
            for rung in rungs:
                runtime.set_rung(rung)
                runtime.reset()
                pairs = itertools.pairwise(ids[:length].tolist())
                sums[rung] += sum(_loss(runtime.decode([token]), following) for token, following in pairs)
            progress.advance(1)
    places = int((samples.lengths - 1).sum())
    return {rung: total / places for rung, total in sums.items()}


def _loss(scores: Float32, token: int) -> float:
    wide = scores.astype(np.float64)
    top = wide.max()
    return float(np.log(np.exp(wide - top).sum()) + top - wide[token])
