"""Memory does not grow with the model: a tensor of 2 GiB converts under 256 MiB above the imports."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import resource, sys
import qdeploy, qdeploy.conversion, qdeploy.proof.report, qdeploy.registry
if sys.argv[3] == "onnx":
    import onnx
for entry in qdeploy.registry.FORMATS.rows().values():
    entry.load()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
qdeploy.convert(sys.argv[1], sys.argv[2], to=sys.argv[3], check="none")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
LIMIT_MIB = 256
ROWS, COLUMNS = 262144, 16384  # of a 4-bit weight that takes 2 GiB


def write_sparse(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], int]]) -> None:
    """A safetensors file whose tensors are holes: it takes no room on the disk, and reads as zeros."""
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def float_checkpoint(folder: Path) -> None:
    shape = (ROWS, 4096)
    write_sparse(folder / "model.safetensors", {"big.weight": ("BF16", shape, shape[0] * shape[1] * 2)})


def gptq_checkpoint(folder: Path) -> None:
    groups = COLUMNS // 128
    write_sparse(
        folder / "model.safetensors",
        {
            "big.qweight": ("I32", (COLUMNS // 8, ROWS), ROWS * COLUMNS // 2),
            "big.qzeros": ("I32", (groups, ROWS // 8), groups * ROWS // 2),
            "big.scales": ("F16", (groups, ROWS), groups * ROWS * 2),
        },
    )
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}}
    (folder / "config.json").write_text(json.dumps(config))


def llama_checkpoint(folder: Path) -> None:
    """A decoder whose embedding has 2 GiB."""
    hidden, middle = 4096, 256
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (ROWS, hidden), "model.norm.weight": (hidden,)}
    shapes |= {f"{layer}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes |= {f"{layer}self_attn.{name}_proj.weight": (hidden if name in "qo" else 128, hidden) for name in "qkvo"}
    shapes |= {f"{layer}mlp.{name}_proj.weight": (middle, hidden) for name in ("gate", "up")}
    shapes[f"{layer}mlp.down_proj.weight"] = (hidden, middle)
    write_sparse(folder / "model.safetensors", {n: ("BF16", s, 2 * math.prod(s)) for n, s in shapes.items()})
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "vocab_size": ROWS,
        "intermediate_size": middle,
        "num_hidden_layers": 1,
        "num_attention_heads": 32,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("make", "to"),
    [(float_checkpoint, "ir"), (gptq_checkpoint, "ir"), (llama_checkpoint, "onnx")],
    ids=["float", "gptq", "onnx"],
)
def test_a_tensor_of_2_gib_converts_under_256_mib(tmp_path: Path, make, to: str):
    if shutil.disk_usage(tmp_path).free < 8 << 30:
        pytest.fail("this test needs 8 GB of free disk")
    (tmp_path / "source").mkdir()
    make(tmp_path / "source")
    command = [sys.executable, "-c", PROBE, str(tmp_path / "source"), str(tmp_path / "out"), to]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < LIMIT_MIB
