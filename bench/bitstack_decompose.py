"""BitStack's decomposition of one matrix: time and residual, ours next to a full SVD per block.

    python bench/bitstack_decompose.py [--size 2048] [--blocks 4] [--rank 16] [--runs 3] [--json FILE]

The published algorithm (arXiv 2410.23918) takes the full SVD of the residual's magnitudes for every block, in float32,
and keeps its factors unrounded; it is written out below with numpy.linalg.svd. Ours runs on the same matrix in the same
process, in turns, and includes rounding to float16 and packing the signs. The matrix has heavy tails and rows and
columns of different sizes, as weights have; with --gauss it is normal. Both use one thread unless OMP_NUM_THREADS is
set.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

import statistics
import time
from typing import Any

import numpy as np
from measure import Results, arguments

from qdeploy.quantize.bitstack import peel

Array = np.ndarray[Any, Any]
FASTER, WITHIN = 5.0, 0.005


def weights(size: int, gauss: bool) -> Array:
    """float32 [size, size]."""
    random = np.random.default_rng(20241023)
    if gauss:
        return random.standard_normal((size, size), np.float32)
    rows, columns = (np.exp(s * random.standard_normal(size)) for s in (0.3, 0.5))
    return (random.standard_t(5, (size, size)) * rows[:, None] * columns).astype(np.float32)


def published(left: Array, blocks: int, rank: int) -> list[float]:
    """Takes blocks off `left`, in place; the residual's norm after each."""
    norms = []
    for _ in range(blocks):
        u, values, vt = np.linalg.svd(np.abs(left), full_matrices=False)
        root = np.sqrt(values[:rank])
        product = (u[:, :rank] * root) @ (root[:, None] * vt[:rank])
        left -= np.where(left >= 0, product, -product)
        norms.append(float(np.linalg.norm(left)))
    return norms


def ours(left: Array, blocks: int, rank: int) -> list[float]:
    """The same, with our decomposition."""
    norms = []
    for block in range(blocks):
        peel(left, rank, None, block)
        norms.append(float(np.linalg.norm(left)))
    return norms


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=2048, help="rows and columns [%(default)s]")
    parser.add_argument("--blocks", type=int, default=4, help="[%(default)s]")
    parser.add_argument("--rank", type=int, default=16, help="[%(default)s]")
    parser.add_argument("--gauss", action="store_true", help="a normal matrix")
    options = parser.parse_args()
    results = Results("bitstack_decompose", options.json)
    weight = weights(options.size, options.gauss)
    taken: dict[str, list[tuple[float, list[float]]]] = {"full SVD": [], "ours": []}
    for _ in range(options.runs or 3):
        for name, decompose in (("full SVD", published), ("ours", ours)):
            left = weight.copy()
            begin = time.perf_counter()
            norms = decompose(left, options.blocks, options.rank)
            taken[name].append((time.perf_counter() - begin, norms))
    times = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in taken.items()}
    norms = {name: runs[0][1] for name, runs in taken.items()}
    energy = float(np.linalg.norm(weight))
    rows = [[name, times[name], times[name] / options.blocks, *(n / energy for n in norms[name])] for name in taken]
    columns = ["", "s", "s per block", *(f"residual {i + 1}" for i in range(options.blocks))]
    results.table(f"{options.size} x {options.size}, {options.blocks} blocks of rank {options.rank}", columns, rows)
    worst = max(a / b for a, b in zip(norms["ours"], norms["full SVD"], strict=True))
    results.bar("times as fast as the full SVD", times["full SVD"] / times["ours"], FASTER)
    results.bar("residual norm against the full SVD's, worst block", worst, 1 + WITHIN, at_least=False)


if __name__ == "__main__":
    main()
