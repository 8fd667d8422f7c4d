"""Networks with learned step sizes, in the published layout, against a forward pass of their own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from residual_forward import F, State, convolutions, forward, network
from safetensors.numpy import save_file
from torch_files import save_legacy, save_zip

from qdeploy.errors import QdeployError, UnsupportedError
from qdeploy.formats.networks import lsq
from qdeploy.integer.weights import stored_codes
from qdeploy.ir.run import Weights, run
from qdeploy.registry import open_model

W, A = lsq.STEP, lsq.INPUT_STEP
SAID = {"weights": {"bits": 3, "symmetric": True}, "activations": {"bits": 2, "all_positive": True}}


def limits(said: dict[str, Any]) -> tuple[int, int]:
    half = 1 << (said["bits"] - 1)
    if said.get("all_positive"):
        return 0, 2 * half - 1
    return (1 - half if said.get("symmetric") else -half), half - 1


class Reference:
    """LsqQuan as the repository has it: divide, limit, round, multiply."""

    def __init__(self, state: State, said: dict[str, Any]) -> None:
        self.state, self.said = state, said

    def entry(self, name: str, role: str) -> dict[str, Any]:
        return self.said[role] | self.said.get("except", {}).get(name, {}).get(role, {})

    def quantized(self, x: np.ndarray, key: str, said: dict[str, Any]) -> np.ndarray:
        step = self.state[key].astype(F)
        return np.rint(np.clip(x / step, *map(F, limits(said)))) * step

    def weight(self, name: str, w: np.ndarray) -> np.ndarray:
        return self.quantized(w, f"{name}.{W}", self.entry(name, "weights")) if f"{name}.{W}" in self.state else w

    def activation(self, name: str, x: np.ndarray) -> np.ndarray:
        result = f"{name}.{A}" in self.state
        return self.quantized(x, f"{name}.{A}", self.entry(name, "activations")) if result else x


def trained(said: dict[str, Any], edges: bool = False, per_channel: bool = False, **how: Any) -> State:
    state = network(**({"blocks": (1, 1), "widths": (8, 12)} | how))
    reference = Reference(state, said)
    for name in [*convolutions(state), *(["conv1", how.get("head", "fc")] if edges else [])]:
        w = state[f"{name}.weight"]
        top = limits(reference.entry(name, "weights"))[1]
        axes = tuple(range(1, w.ndim)) if per_channel else None
        step = np.abs(w).mean(axis=axes, keepdims=per_channel) * 2 / np.sqrt(top)
        state[f"{name}.{W}"] = np.asarray(step, F).reshape(step.shape or (1,))
        state[f"{name}.{A}"] = np.array([3 / limits(reference.entry(name, "activations"))[1]], F)
    return state


def write(folder: Path, state: State, said: Any, save: Any = save_zip) -> Path:
    prefixed = {f"module.{name}": array for name, array in state.items()}
    save(folder / "net_best.pth.tar", {"epoch": 1, "state_dict": prefixed, "arch": "resnet6", "extras": {}})
    (folder / lsq.CONFIG).write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    ("said", "how"),
    [
        (SAID, {}),
        (SAID | {"weights": {"bits": 8}, "activations": {"bits": 8, "all_positive": True}}, {"per_channel": True}),
        (SAID | {"weights": {"bits": 2}}, {"projected": False, "head": "linear"}),
        (
            SAID
            | {
                "except": {
                    "conv1": {"weights": {"bits": 8}, "activations": {"bits": 8, "all_positive": False}},
                    "fc": {"weights": {"bits": 8}, "activations": {"bits": 4}},
                }
            },
            {"edges": True},
        ),
    ],
)
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_networks_equal_a_forward_pass_of_their_own(tmp_path: Path, said: Any, how: dict[str, Any], save: Any):
    state = trained(said, **how)
    model = open_model(write(tmp_path, state, said, save))
    reference = Reference(state, said)
    x = np.random.default_rng(1).standard_normal((4, 3, 32, 32)).astype(F)
    result = run(model.graph, {"input": x}, None, Weights(model))[0]["logits"]
    wanted = forward(state, x, reference.weight, reference.activation)
    close = np.abs(result - wanted).max(axis=1) < 1e-3 * np.abs(wanted).max()
    assert close.mean() >= 0.75  # one of four may have an activation on a tie
    for name in convolutions(state):
        constant = model.graph.constants[f"{name}/weight"]
        np.testing.assert_array_equal(constant.decode(), reference.weight(name, state[f"{name}.weight"]))
        low, high = limits(reference.entry(name, "weights"))
        codes = stored_codes(constant, name).codes
        assert low <= codes.min() and codes.max() <= high


def test_a_layer_without_steps_is_a_float_layer(tmp_path: Path):
    graph = open_model(write(tmp_path, trained(SAID), SAID)).graph
    taken = {node.inputs[1] for node in graph.nodes if node.op in ("Conv", "Gemm")}
    assert {"module.conv1.weight", "module.fc.weight", "layer1.0.conv1/weight"} <= taken


def test_limits_are_those_of_the_training(tmp_path: Path):
    steps = lsq.Steps(
        {
            "weights": {"bits": 4},
            "activations": {"bits": 3, "symmetric": True},
            "except": {"fc": {"activations": {"symmetric": False, "all_positive": True}}},
        }
    )
    assert steps.limits("conv1", "weights") == lsq.Limits(-8, 7)
    assert steps.limits("conv1", "activations") == lsq.Limits(-3, 3)
    assert steps.limits("fc", "activations") == lsq.Limits(0, 7)


def test_safetensors_are_read_too(tmp_path: Path):
    save_file(trained(SAID), tmp_path / "net.safetensors")
    with pytest.raises(UnsupportedError, match="how many bits") as caught:
        open_model(tmp_path / "net.safetensors")
    assert lsq.CONFIG in str(caught.value)
    (tmp_path / lsq.CONFIG).write_text(json.dumps(SAID))
    assert open_model(tmp_path).format == open_model(tmp_path / "net.safetensors").format == "lsq"


@pytest.mark.parametrize(
    "said",
    [
        [],
        3,
        "lsq",
        {"weights": 3},
        {"weights": {"bits": 9}},
        {"weights": {"bits": 1}},
        {"weights": {"bits": "3"}},
        {"weights": {"bits": True}},
        {"weights": {"bits": 3, "symmetric": 1}},
        {"weights": {"bits": 3, "mode": "lsq"}},
        {"weights": {"bits": 3, "symmetric": True, "all_positive": True}},
        {"activations": []},
        {"except": []},
        {"except": {"conv1": 3}},
        {"except": {"conv1": {"weight": {"bits": 8}}}},
        {"except": {"conv1": {"weights": 8}}},
        {"arch": 18},
        {"arch": "resnet18"},
        {"bits": 3},
        {"image": [3]},
        {},
        {"weights": {"bits": None}},
    ],
)
def test_a_side_file_that_says_nonsense_is_refused(tmp_path: Path, said: Any):
    whole = SAID | said if isinstance(said, dict) and said else said
    if said == {"weights": {"bits": None}} or said == {}:
        whole = said
    with pytest.raises(QdeployError) as caught:
        _ = open_model(write(tmp_path, trained(SAID), whole)).graph
    assert lsq.CONFIG in str(caught.value) or said == {"arch": "resnet18"}


@pytest.mark.parametrize("key", [W, A])
@pytest.mark.parametrize("value", [0.0, -0.5, 1e-44, np.nan, np.inf, [1.0, 2.0], [[1.0] * 12]])
def test_steps_that_are_none_are_refused_by_name(tmp_path: Path, key: str, value: Any):
    state = trained(SAID)
    state[f"layer2.0.conv1.{key}"] = np.array(value, F)
    with pytest.raises(QdeployError) as caught:
        _ = open_model(write(tmp_path, state, SAID)).graph
    assert f"layer2.0.conv1.{key}" in str(caught.value)
