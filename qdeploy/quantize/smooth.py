"""Inputs of layers whose channels differ in size, on one grid: each channel is divided by a size of its own first.

    x W^T = (x / c) (W c)^T,    c_k = max(size_k, size / 10) ^ 0.7,    size = max size_k

(SmoothQuant, Xiao et al., arXiv 2211.10438, section 4; exponents from 0.5 to 0.85 hardly differ.) The division costs
nothing: it is part of the rescaling that makes the codes, whose factors then are per channel; and c is in the weight
before that is quantized. Sums that take the same value take it undivided.

The size of a channel is its greatest number. Where one side of zero is much smaller than the other over all channels
(as behind a GELU), that side counts up to four times, so that no channel needs more room there than it is worth.

Only what a normalisation or a GELU makes is divided: what else there is has no such channels, or is codes already.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qdeploy.ir.graph import Graph

Float64 = npt.NDArray[np.float64]
Channels = Mapping[str, tuple[Float64, Float64]]
"""The least and the greatest number of each channel (float64 [K] each) by the name of a value [..., K]."""
MAKERS = frozenset({"LayerNormalization", "RMSNormalization", "Gelu"})
EXPONENT, LEAST, ONE_SIDED = 0.7, 0.1, 4.0


def smoothable(graph: Graph) -> frozenset[str]:
    """The values of a folded graph that may be divided: results of `MAKERS` that a Linear takes."""
    dividable = {node.outputs[0] for node in graph.nodes if node.op in MAKERS}
    return frozenset(node.inputs[0] for node in graph.nodes if node.op == "Linear" and node.inputs[0] in dividable)


def divisors(low: Float64, high: Float64) -> Float64:
    """What each channel is divided by: float64 [K], positive.

    Args:
        low: The least number of each channel.
        high: The greatest one.
    """
    below, above = np.maximum(-low, 0.0), np.maximum(high, 0.0)
    least, most = float(below.max(initial=0)), float(above.max(initial=0))
    if not least and not most:
        return np.ones(len(low))
    weights = [min(max(other / own, 1.0), ONE_SIDED) if own else 1.0 for own, other in ((least, most), (most, least))]
    size = np.maximum(below * weights[0], above * weights[1])
    return np.asarray(np.maximum(size, LEAST * size.max()) ** EXPONENT)
