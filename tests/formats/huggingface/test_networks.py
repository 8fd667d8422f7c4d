"""Networks of layers from the text of their layouts: every engine computes with the numbers that the layouts say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layers import Layer, P
from layers_exl import exl2, exl3_layer
from layers_higgs import higgs
from layers_spqr import spqr
from published import Stored, write

import qdeploy
from qdeploy import registry

HIDDEN, INNER, VOCABULARY = 128, 256, 64
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
IDS = np.array([[3, 14, 15, 9, 26, 53]])
LAYER = "model.layers.0"
SHAPES = {f"{LAYER}.self_attn.{part}_proj": (HIDDEN, HIDDEN) for part in "qkvo"} | {
    f"{LAYER}.mlp.gate_proj": (INNER, HIDDEN),
    f"{LAYER}.mlp.up_proj": (INNER, HIDDEN),
    f"{LAYER}.mlp.down_proj": (HIDDEN, INNER),
}
Maker = Callable[[str, int, int], tuple[Layer, np.ndarray]]


def of_exl2(name: str, rows: int, columns: int) -> tuple[Layer, np.ndarray]:
    layer = exl2(name, [(6, 32), (4, 64), (3, columns - 96)], rows)
    return layer, layer.expected


def of_exl2_in_order(name: str, rows: int, columns: int) -> tuple[Layer, np.ndarray]:
    layer = exl2(name, [(4, 32)] * (columns // 32), rows, in_order=True)
    return layer, layer.expected


def of_exl3(name: str, rows: int, columns: int) -> tuple[Layer, np.ndarray]:
    """The effective weight: what the layer computes is x @ weight.T."""
    layer = exl3_layer(name, 3, "mcg", columns // 16, rows // 16)
    suh, svh = (layer.tensors[f"{P}.{part}h"][1].astype(np.float64) for part in ("su", "sv"))
    return layer, svh[:, None] * (blocks(rows) @ layer.expected @ blocks(columns)) * suh


def blocks(count: int) -> np.ndarray:
    """Hadamard transforms of blocks of 128."""
    turn = np.array([[(-1.0) ** bin(i & j).count("1") for j in range(128)] for i in range(128)]) / np.sqrt(128)
    return np.kron(np.eye(count // 128), turn)


def of_higgs(name: str, rows: int, columns: int) -> tuple[Layer, np.ndarray]:
    """The effective weight."""
    layer = higgs(name, 4, 2, 16, rows, columns)
    return layer, layer.expected @ blocks(columns)


def of_higgs_single(name: str, rows: int, columns: int) -> tuple[Layer, np.ndarray]:
    layer = higgs(name, 4, 1, 17, rows, columns)
    return layer, layer.expected @ blocks(columns)


def of_spqr(name: str, rows: int, columns: int) -> tuple[Layer, np.ndarray]:
    layer = spqr(name, rows // 16, columns // 16, 1, 0.01)
    return layer, layer.expected


def stored(maker: Maker) -> tuple[Stored, Stored, dict[str, object]]:
    """A checkpoint, the same in floats, and its settings; rows are made as long as those of a trained network."""
    random = np.random.default_rng(3)
    plain: Stored = {
        "model.embed_tokens.weight": ("F32", random.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)),
        "lm_head.weight": ("F32", random.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32) / 8),
        "model.norm.weight": ("F32", np.ones(HIDDEN, np.float32)),
    }
    for norm in ("input", "post_attention"):
        size = np.full(HIDDEN, 0.01, np.float32)
        plain[f"{LAYER}.{norm}_layernorm.weight"] = ("F32", size)
    packed, floats, settings, tuned = dict(plain), dict(plain), {}, {}
    for name, (rows, columns) in SHAPES.items():
        layer, weight = maker(name, rows, columns)
        packed |= {key.replace(P, name): value for key, value in layer.tensors.items()}
        floats[f"{name}.weight"] = ("F32", weight.astype(np.float32))
        settings = layer.settings
        tuned |= dict.fromkeys([name] if "tune_metadata" in settings else [], settings.get("tune_metadata", {}).get(P))
    if tuned:
        settings = {**settings, "tune_metadata": tuned}
    return packed, floats, settings


MAKERS = [of_exl2, of_exl2_in_order, of_exl3, of_spqr, of_higgs, of_higgs_single]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__[3:])
def test_every_engine_computes_with_the_numbers_of_the_layout(tmp_path: Path, maker: Maker) -> None:
    packed, floats, settings = stored(maker)
    folder = write(tmp_path / "packed", packed, dict(settings), CONFIG)
    wanted = qdeploy.load(write(tmp_path / "floats", floats, None, CONFIG)).run(input_ids=IDS)["logits"]
    scale = np.linalg.norm(wanted)
    assert np.linalg.norm(qdeploy.load(folder).run(input_ids=IDS)["logits"] - wanted) <= 2e-5 * scale
    for target, limit in (("ir", 2e-5), ("onnx", 5e-5), ("native", 5e-2)):
        out = tmp_path / ("m.qd" if target == "native" else target)
        report = qdeploy.convert(folder, out, to=target)
        proven = report["lossless"]["tensor bytes"]
        assert proven["proven"] == proven["of"] > 0
        if target == "ir":
            logits = qdeploy.load(out).run(input_ids=IDS)["logits"]
        else:
            text = registry.backend(target).text
            assert text is not None
            logits = text.logits(str(out), IDS)
        assert np.linalg.norm(logits.reshape(wanted.shape) - wanted) <= limit * scale, target
