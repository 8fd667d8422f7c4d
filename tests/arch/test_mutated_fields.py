"""Every field of a published configuration counts: changed, it changes the graph, or is refused, or is known to mean
nothing to the arithmetic. A field that is none of these would be ignored in silence."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy import load
from qdeploy.arch import build_graph
from qdeploy.errors import QdeployError
from qdeploy.ir.graph import Graph

ROOT = Path(os.environ.get("QDEPLOY_TESTDATA", Path(__file__).parents[3] / "shared" / "data"))
FOLDERS = sorted(path.name for path in (ROOT / "architectures").glob("arch-*"))
NEUTRAL = frozenset(
    field
    for line in Path(__file__).with_name("neutral_fields.txt").read_text().splitlines()
    for field in line.partition("#")[0].split()
)
"""Fields that no graph depends on, or only together with others."""
SOMETIMES = {
    "architectures": "vlm",
    "model_type": ("vlm", "siglip", "clip"),
    "norm_topk_prob": "deepseek_v2",
    "head_dim": ("deepseek", "kimi"),
    "intermediate_size": ("qwen2_moe", "qwen3_next"),
    "mamba_d_ssm": "falcon_h1",
    "time_step_min": "mamba2",
    "time_step_limit": "nemotron_h",
    "rope_theta": "granitemoehybrid",
    "factor": "hunyuan",
    "projection_dim": "clip",
    "num_experts": "gemma4",
    "top_k_experts": "gemma4",
    "moe_intermediate_size": "gemma4",
    "sliding_window": ("qwen2_moe", "qwen3_moe", "smollm3"),
    "use_sliding_window": ("qwen3_moe", "smollm3"),
    "max_position_embeddings": "ministral3",
    "type": "ministral3",
}
"""Fields that these families read under another name, or only together with another field."""


def key_of(graph: Graph) -> str:
    """A digest of all that a graph says."""
    digest = hashlib.sha256(
        repr((graph.inputs, graph.outputs, graph.nodes, graph.states, sorted(graph.meta.items()))).encode()
    )
    for name, tensor in graph.constants.items():
        array = np.asarray(tensor.decode())
        digest.update(f"{name} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def changed(value: Any) -> list[Any]:
    """Other values of the same type; for null, a number and a flag."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2 + 3]
    if isinstance(value, float):
        return [value * 1.5 + 0.25]
    if isinstance(value, str):
        return [f"{value}_x", "gelu" if value != "gelu" else "relu"]
    if isinstance(value, list):
        turned = value[::-1]
        return [turned if turned != value else value + value[:1], [changed(x)[0] if changed(x) else x for x in value]]
    return [1, True] if value is None else []


def fields_of(config: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in config.items():
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            yield from fields_of(value, (*path, name))
        else:
            yield (*path, name), value


def is_neutral(path: tuple[str, ...], family: str) -> bool:
    name = path[-1]
    families = SOMETIMES.get(name, ())
    other_tower = path[0] == "vision_config" and "vlm" in family
    return name in NEUTRAL or other_tower or any(part in family for part in np.atleast_1d(families).tolist())


def with_field(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(json.dumps(config))
    part = whole
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return whole


def is_noticed(folder: Path, config: dict[str, Any], usual: str) -> bool:
    model = load(folder)
    model.config = config
    try:
        return key_of(build_graph(model)) != usual
    except QdeployError:
        return True


@pytest.mark.parametrize("name", FOLDERS)
def test_a_field_that_is_changed_changes_the_graph_or_is_refused(testdata: Path, name: str):
    folder = testdata / "architectures" / name
    model = load(folder)
    try:
        usual = key_of(build_graph(model))
    except QdeployError:
        return  # no family builds it, which another test looks at
    config = json.loads(json.dumps(dict(model.config)))
    ignored = [
        ".".join(path)
        for path, value in fields_of(config)
        if not is_neutral(path, name)
        and not any(is_noticed(folder, with_field(config, path, other), usual) for other in changed(value))
    ]
    assert not ignored
