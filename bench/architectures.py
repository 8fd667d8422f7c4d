"""Holds every family against transformers' own outputs, in every engine, and writes the table of docs/architectures.md.

    QDEPLOY_TESTDATA=DATA python bench/architectures.py [--write]

Each folder of DATA/architectures is a tiny random checkpoint with the library's outputs. The interpreter is held
against these (relative L2 of the worst output), ONNX Runtime and the native runtime against the interpreter (the whole
check of a conversion). A family without such a folder stands in the table without figures.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import qdeploy
from qdeploy.arch.family import family_of, model_types
from qdeploy.errors import QdeployError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
HEAD = """# Architectures

Every model type whose graph is built, and what each engine computes of it, held against transformers 5.23.0 on tiny
random checkpoints. The figures are relative L2 distances of the worst output: the interpreter's from the library's, the
engines' from the interpreter's. `bench/architectures.py` writes this page. A head decides what a graph gives: logits of
causal and masked language models, of sequences, tokens and answers, or hidden states; another class is an error that
names it. A causal decoder may come without its output projection, as embedding models do, or with scores of sequences
or tokens in its place; of a model of several towers, the text model is built.

| family | model types | GGUF | interpreter | ONNX Runtime | native runtime |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Prints the table, and writes it with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/architectures.md")
    arguments = parser.parse_args()
    folders = _folders(Path(os.environ["QDEPLOY_TESTDATA"]) / "architectures")
    names = dict.fromkeys(family.name for kind in model_types() if (family := family_of(kind)))
    text = HEAD + "".join(_row(name, folders) for name in names)
    print(text)
    if arguments.write:
        PAGE.write_text(text)


def _folders(root: Path) -> dict[str, list[Path]]:
    folders: dict[str, list[Path]] = {}
    for folder in sorted(root.glob("arch-*")):
        config = json.loads((folder / "config.json").read_text())
        folders.setdefault(config["model_type"], []).append(folder)
    return folders


def _row(name: str, folders: dict[str, list[Path]]) -> str:
    family = next(f for kind in model_types() if (f := family_of(kind)) is not None and f.name == name)
    kinds = [folder for kind in family.heads for folder in folders.get(kind, ())]
    columns = [_worst([_held(folder, engine) for folder in kinds]) for engine in ("interpreter", "onnx", "native")]
    gguf = ", ".join(family.gguf) or "no"
    return f"| {name} | {', '.join(family.heads)} | {gguf} | {' | '.join(columns)} |\n"


def _worst(cells: list[float | str]) -> str:
    errors = [cell for cell in cells if isinstance(cell, float)]
    reasons = list(dict.fromkeys(cell for cell in cells if isinstance(cell, str)))
    parts = ([f"{max(errors):.0e}"] if errors else []) + reasons
    return "; ".join(parts) or "no checkpoint"


def _held(folder: Path, engine: str) -> float | str:
    try:
        return _interpreter(folder) if engine == "interpreter" else _engine(folder, engine)
    except QdeployError as error:
        return f"no: {error.found or error.what}"


def _interpreter(folder: Path) -> float:
    model = qdeploy.load(folder)
    with np.load(folder / "oracle.npz") as file:
        oracle = dict(file)
    worst = 0.0
    for suffix in ("", "_2"):
        inputs = {v.name: oracle[v.name + suffix] for v in model.graph.inputs if v.name + suffix in oracle}
        if model.graph.inputs[0].name not in inputs:
            continue
        mask = inputs.get("attention_mask", np.ones((0, 0))).astype(bool)
        outputs = {name: array for name, array in model.run(**inputs).items() if name + suffix in oracle}
        for name, actual in outputs.items():
            expected: Any = oracle[name + suffix]
            if actual.shape[:2] == mask.shape:
                actual, expected = actual[mask], expected[mask]
            worst = max(worst, float(np.linalg.norm(actual - expected) / np.linalg.norm(expected)))
    return worst


def _engine(folder: Path, to: str) -> float | str:
    with tempfile.TemporaryDirectory() as work:
        report = qdeploy.convert(folder, Path(work) / "out", to=to, check="full")
    whole = [check["error"] for check in report["checks"] if check["name"] == "model"]
    return float(whole[0]) if whole else "not run"


if __name__ == "__main__":
    main()
