"""What is recorded of a golden file: the logits at every rung, in every arithmetic, with every kind of cache.

    python -P tests/golden/playing.py FOLDER

records the files of a folder (made by networks.py); of those that have been released nothing is recorded again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qdeploy.errors import BadArgumentError
from qdeploy.native import Runtime

PROMPT, NEXT = [3, 88, 41, 7, 19, 0, 56], 71
ACTIVATIONS, CACHES = ("int8", "exact"), ("f16", "int8", "f32")


def played(model: Runtime) -> np.ndarray:
    """A prompt and one more token, or a sequence and a longer one: float32 [2, vocabulary or width]."""
    if model.encoder:
        return np.concatenate([model.run(ids)["sentence_embedding"] for ids in (PROMPT[:3], [*PROMPT, NEXT])])
    model.reset()
    return np.stack([model.decode(PROMPT), model.decode([NEXT])])


def rungs(model: Runtime, every: bool) -> list[int]:
    """All rungs that run, or the least, a middle one and the last."""
    last, first = model.stats["rungs"], 1
    while True:
        try:
            model.set_rung(first)
            break
        except BadArgumentError:
            first += 1
    return list(range(first, last + 1)) if every else sorted({first, (first + last) // 2, last})


def recordings(path: Path, isa: str | None = None, threads: int = 2) -> Iterator[tuple[str, np.ndarray]]:
    """What a file gives, by "activations-cache-rung"."""
    for activations in ACTIVATIONS:
        for cache in CACHES:
            options = {"activations": activations, "kv": cache, "threads": threads, "context": 32, "isa": isa}
            with Runtime(path, **options) as model:  # type: ignore[arg-type]
                if model.encoder and cache != "f16":
                    continue
                for rung in rungs(model, activations == "int8" and cache == "f16"):
                    model.set_rung(rung)
                    yield f"{activations}-{cache}-{rung}", played(model)


def main(folder: Path) -> None:
    """Records every file of a folder."""
    for path in sorted(folder.glob("*.qd")):
        with open(path.with_suffix(".npz"), "xb") as out:
            np.savez_compressed(out, **dict(recordings(path)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
