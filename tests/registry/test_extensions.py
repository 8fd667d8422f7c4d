"""Extensions: number types, ops and families of a distribution are there when they are asked for, and not before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

GPTQ = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama-gptq"
MODULE = """
from qdeploy.arch.family import Family, family_of, register
from qdeploy.ir import dtype
from qdeploy.ir.ops import table
from qdeploy.ir.ops.row import QDEPLOY, Op

print("IMPORTED")
LLAMA = family_of("llama")
dtype.register(dtype.DType("five", 3, "levels", "U8", levels=(-2, -1, 0, 1, 2, 0, 0, 0)))
table.register(Op("ToyHalf", QDEPLOY, "x / 2", lambda x: x / 2))


def build(model):
    model.config = {**model.config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return LLAMA.build(model)


register(Family("toy", {"toy": ("ToyForCausalLM",)}, LLAMA.names, build))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed distributions, of which one brings an extension that works and one that does not."""
    folder = tmp_path / "site"
    info = folder / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "toy_extension.py").write_text(MODULE)
    (folder / "toy_broken.py").write_text("from qdeploy.ir import dtype\ndtype.register(dtype.dtype('uint4'))\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-brand\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qdeploy.extensions]\ntoy = toy_extension\nbroken = toy_broken\n")
    return folder


def ran(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_a_name_that_is_known_imports_no_extension(site: Path):
    done = ran(site, "-m", "qdeploy", "inspect", str(GPTQ))
    assert done.returncode == 0 and "IMPORTED" not in done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "from qdeploy.ir.dtype import dtype; assert dtype('five').values()[4] == 2",
        "from qdeploy.ir.ops.table import op; assert op('ToyHalf').numpy(4) == 2",
        "from qdeploy.arch.family import family_of; assert family_of('toy').name == 'toy'",
    ],
)
def test_a_name_that_nothing_here_knows_is_looked_for_in_extensions(site: Path, code: str):
    done = ran(site, "-c", code)
    assert (done.returncode, done.stdout) == (0, "IMPORTED\n"), done.stderr


def test_a_checkpoint_of_a_family_of_an_extension_has_a_graph(site: Path, tmp_path: Path):
    names = ["model.embed_tokens", "lm_head", *(f"model.layers.0.self_attn.{p}_proj" for p in "qkvo")]
    names += [f"model.layers.0.mlp.{p}_proj" for p in ("gate", "up", "down")]
    norms = ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]
    tensors = {f"{name}.weight": np.ones((32, 32), np.float32) for name in names}
    tensors |= {f"{name}.weight": np.ones(32, np.float32) for name in norms}
    config = {"model_type": "toy", "architectures": ["ToyForCausalLM"], "hidden_size": 32, "intermediate_size": 32}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32, "rms_norm_eps": 1e-6}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = ran(site, "-m", "qdeploy", "inspect", str(tmp_path), "--json")
    assert done.returncode == 0 and '"graph": "decoder' in done.stdout, done.stdout + done.stderr


def test_an_extension_that_fails_is_said_where_a_name_stays_unknown(site: Path):
    done = ran(site, "-c", "from qdeploy.ir.dtype import dtype; dtype('six')")
    assert done.returncode == 1 and "unknown number format" in done.stderr
    assert "The extension broken of toy-brand is left out: the plug-in broken cannot be imported" in done.stderr
    assert "name is taken" in done.stderr


def test_extensions_are_listed_and_so_are_their_ops(site: Path):
    listed = ran(site, "-m", "qdeploy", "formats", "--json").stdout.partition("\n")[2]
    rows = {row["name"]: row["title"] for row in json.loads(listed) if row["kind"] == "extension"}
    assert rows["toy"].startswith("number types") and rows["broken"].startswith("not available: ")
    assert "ToyHalf" in ran(site, "-m", "qdeploy", "formats", "--ops").stdout
