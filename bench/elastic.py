"""How good a ladder is at each size, from one file: perplexity of BabyLlama on TinyStories, at every level and between.

    QDEPLOY_TESTDATA=DIR python bench/elastic.py [--efforts fast,full,best,balanced,imported] [--stories 60]
        [--json FILE]

Fitted to the last 150 stories, evaluated on the first 60, cut to 256 tokens; groups of 64, embedding and head float,
float32 activations in the native runtime. Bits are those that a level needs of each weight of the layers: its planes,
8 per group, 32 per row. `mixed` is the order of the stack by measured losses. `imported` makes ladders of the codes of
GPTQ at 4 bits (groups of 64 with zero points), whose last level must be the source bit for bit.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import Results, arguments

import qdeploy
from qdeploy.native import Runtime
from qdeploy.quantize.samples import SEPARATOR, Samples, read_samples

SPECS = {
    "fast": "effort=fast",
    "full": "effort=full",
    "best": "effort=best",
    "balanced": "effort=best,profile=balanced",
}
LIMITS = {
    "fast": (3.10, 2.06, 1.925),
    "full": (2.75, 2.03, 1.915),
    "best": (2.32, 2.00, 1.915),
    "balanced": (2.42, 1.99, 1.905),
}
IMPORTED = {"full": (4.7, 2.10), "best": (4.2, 2.10)}
MIXED = {1.86: 4.2, 2.11: 2.8, 2.86: 2.12}


def perplexity(runtime: Any, rung: int, samples: Samples) -> float:
    """Of every token but the first of each story."""
    runtime.set_rung(rung)
    loss, places = 0.0, 0
    for ids, length in zip(samples.ids, samples.lengths, strict=True):
        runtime.reset()
        for token, following in itertools.pairwise(ids[:length].tolist()):
            scores = runtime.decode([token]).astype(np.float64)
            top = scores.max()
            loss += math.log(np.exp(scores - top).sum()) + top - scores[following]
            places += 1
    return math.exp(loss / places)


def bits_of(path: Path) -> list[float]:
    """Bits per weight of the ladders at every rung: what the last resident level of each needs."""
    from qdeploy.backends.native.layout import SectionId
    from qdeploy.backends.native.reading import ModelFile

    file = ModelFile(path)
    matrices, terms, blocks = (file.section(s) for s in (SectionId.MATRICES, SectionId.TERMS, SectionId.BLOCKS))
    owner = {int(m["first_term"]): m for m in matrices}
    planes, sizes = dict.fromkeys(range(len(terms)), 0), []
    weights = sum(int(m["rows"]) * int(m["columns"]) for t, m in owner.items() if terms[t]["ladder"])
    for block in blocks[np.argsort(blocks["at"], kind="stable")]:
        planes[int(block["term"])] += 1
        total = 0
        for term, count in planes.items():
            record, matrix = terms[term], owner[term]
            if record["ladder"] and count:
                columns = -(-int(matrix["columns"]) // 8) * 8
                total += int(matrix["rows"]) * (count * columns + 8 * -(-columns // int(record["group"])) + 32)
        sizes.append(total / weights)
    return sizes


def main() -> None:
    """Runs what is asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--efforts", default="fast,full,best,balanced,imported", help="[%(default)s]")
    parser.add_argument("--stories", type=int, default=60, help="that are evaluated [%(default)s]")
    options = parser.parse_args()
    data, results = Path(os.environ["QDEPLOY_TESTDATA"]), Results("elastic.py", options.json)
    model = data / "lm/babyllama-tok105"
    stories = [s.strip() for s in (data / "text/tinystories_a.txt").read_text().split(SEPARATOR) if s.strip()]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "fit.txt").write_text(SEPARATOR.join(stories[-150:]))
        (work / "eval.txt").write_text(SEPARATOR.join(stories[: options.stories]))
        samples = read_samples(qdeploy.load(model), str(work / "eval.txt"))
        for effort in options.efforts.split(","):
            if effort == "imported":
                measure_imported(results, model, work, samples)
            else:
                measure(results, model, work, effort, samples)


def measure(results: Results, model: Path, work: Path, effort: str, samples: Samples) -> None:
    """Fits once, and reads levels and mixtures off two orders of the same ladders."""
    spec = f"ladder:group=64,calibrate={work / 'fit.txt'},only=layers,{SPECS[effort]}"
    package = work / f"{effort}-package"
    qdeploy.convert(model, package, to="ir", quantize=spec)
    for order in ("uniform", "gain"):
        path = work / f"{effort}-{order}.qd"
        qdeploy.convert(package, path, to="native", order=order)
        bits = bits_of(path)
        with Runtime(path, activations="exact", threads=1, kv="f32") as runtime:
            if order == "uniform":
                for level, limit in zip((2, 3, 4), LIMITS[effort], strict=True):
                    rung = len(bits) - 35 * (4 - level)
                    name = f"{effort}, {level} planes, {bits[rung - 1]:.2f} bits: perplexity"
                    results.bar(name, perplexity(runtime, rung, samples), limit, at_least=False)
            elif effort == "best":
                for wanted, limit in MIXED.items():
                    rung = max(r for r, size in enumerate(bits, 1) if size <= wanted + 1e-9 or r == 36)
                    name = f"best, mixed, {bits[rung - 1]:.2f} bits: perplexity"
                    results.bar(name, perplexity(runtime, rung, samples), limit, at_least=False)


def measure_imported(results: Results, model: Path, work: Path, samples: Samples) -> None:
    """The lower levels of integers that somebody else has made, and whether all planes are still those integers."""
    source, plain, text = work / "gptq", work / "gptq.qd", work / "fit.txt"
    qdeploy.convert(model, source, to="ir", quantize=f"gptq:int4,zeros=group,group=64,calibrate={text},only=layers")
    qdeploy.convert(source, plain, to="native")
    probe = samples.ids[0][: samples.lengths[0]]
    with Runtime(plain, activations="exact", threads=1, kv="f32") as runtime:
        wanted = np.array(runtime.logits(probe))
        top = perplexity(runtime, len(runtime.rungs()), samples)
    for effort, limits in IMPORTED.items():
        path = work / f"imported-{effort}.qd"
        qdeploy.convert(source, path, to="native", order="uniform", quantize=f"ladder:calibrate={text},effort={effort}")
        with Runtime(path, activations="exact", threads=1, kv="f32") as runtime:
            same = np.array_equal(np.array(runtime.logits(probe)), wanted)
            results.bar(f"imported, {effort}, 4 planes: logits are the source's", float(same), 1.0)
            count = len(runtime.rungs())
            for level, limit in zip((2, 3), limits, strict=True):
                name = f"imported, {effort}, {level} planes: perplexity (source {top:.3f})"
                results.bar(name, perplexity(runtime, count - 35 * (4 - level), samples), limit, at_least=False)


if __name__ == "__main__":
    main()
