"""A single tensor of 2 GiB converts under 256 MiB above the imports.

    python bench/memory.py --work DIR [--json FILE]

Each case is converted twice: with a tensor of 2 GiB, and with the same kind of tensor 1024 times smaller, which takes
the same imports and the same way. The difference of the two peaks is what the size costs. Needs about 10 GB of disk.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import ONE_THREAD, QDEPLOY, Results, arguments, run
from synthetic import GROUP, QUANTIZATION, Tensor, config, write_safetensors
from tokenizer import write_tokenizer

MIB = 1 << 20
LIMIT = 256
PACKAGE = ("--to", "ir")
ONNX = ("--to", "onnx", "--check", "nodes")
INT4 = ("--quantize", "rtn:int4,group=128,clip=none")


@dataclass(frozen=True)
class Case:
    """A checkpoint and how it is converted."""

    name: str
    kind: str  # "matrix", "gptq" or "llama"
    options: tuple[str, ...]


CASES = (
    Case("float matrix to package", "matrix", PACKAGE),
    Case("GPTQ layer to package", "gptq", PACKAGE),
    Case("Llama with a 2 GiB embedding to package", "llama", PACKAGE),
    Case("Llama with a 2 GiB embedding to ONNX", "llama", ONNX),
    Case("Llama with a 2 GiB embedding to int4 ONNX", "llama", (*ONNX, *INT4)),
)


def matrix(size: int) -> tuple[list[Tensor], dict[str, Any]]:
    """One bfloat16 matrix of `size` bytes, with no network around it."""
    rows = size // 2 // 4096
    return [Tensor("weight", "BF16", (rows, 4096), "normal")], {}


def gptq(size: int) -> tuple[list[Tensor], dict[str, Any]]:
    """One GPTQ layer with `size` bytes of codes: 32768 outputs."""
    inputs, outputs = size * 2 // 32768, 32768
    groups = inputs // GROUP
    stored = [
        Tensor("layer.qweight", "I32", (inputs // 8, outputs), "codes"),
        Tensor("layer.qzeros", "I32", (groups, outputs // 8), "sevens"),
        Tensor("layer.scales", "F16", (groups, outputs), "scales"),
        Tensor("layer.g_idx", "I32", (inputs,), "ramp"),
    ]
    return stored, {"quantization_config": QUANTIZATION["gptq"]}


def llama(size: int) -> tuple[list[Tensor], dict[str, Any]]:
    """A Llama without layers to speak of; its embedding, tied to the head, has `size` bytes."""
    hidden = 2048
    rows = size // 2 // hidden
    settings = config("bf16", 1) | {
        "vocab_size": rows,
        "tie_word_embeddings": True,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    prefix = "model.layers.0"
    shapes = {
        "self_attn.q_proj": (128, hidden),
        "self_attn.k_proj": (128, hidden),
        "self_attn.v_proj": (128, hidden),
        "self_attn.o_proj": (hidden, 128),
        "mlp.gate_proj": (256, hidden),
        "mlp.up_proj": (256, hidden),
        "mlp.down_proj": (hidden, 256),
    }
    stored = [Tensor("model.embed_tokens.weight", "BF16", (rows, hidden), "normal")]
    stored += [Tensor(f"{prefix}.{name}.weight", "BF16", shape, "normal") for name, shape in shapes.items()]
    norms = (f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm", "model.norm")
    stored += [Tensor(f"{name}.weight", "BF16", (hidden,), "norm") for name in norms]
    return stored, settings


def write(folder: Path, kind: str, size: int) -> None:
    """Writes a checkpoint."""
    stored, settings = {"matrix": matrix, "gptq": gptq, "llama": llama}[kind](size)
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", stored)
    if kind == "llama":
        write_tokenizer(folder, 512)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def peak(work: Path, case: Case, size: int) -> int:
    """Peak memory of the converting process, bytes."""
    source, target = work / f"{case.kind}-{size}", work / "converted"
    if not source.exists():
        write(source, case.kind, size)
    shutil.rmtree(target, ignore_errors=True)
    used = run([*QDEPLOY, "convert", source, target, "--jobs", "1", "--quiet", *case.options], ONE_THREAD)
    shutil.rmtree(target)
    return used.own


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    results, work = Results("memory.py", options.json), options.work.absolute() / "memory"
    shutil.rmtree(work, ignore_errors=True)
    rows: list[tuple[str, float, float, float]] = []
    for case in CASES:
        small, large = peak(work, case, 2 * MIB), peak(work, case, 2048 * MIB)
        rows.append((case.name, small / MIB, large / MIB, (large - small) / MIB))
    shutil.rmtree(work)
    results.table("Peak of the converting process", ["case", "2 MiB tensor, MiB", "2 GiB tensor, MiB", "above"], rows)
    for name, _, _, above in rows:
        results.bar(f"{name}: MiB above the imports", above, LIMIT, at_least=False)


if __name__ == "__main__":
    main()
