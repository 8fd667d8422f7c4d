"""HAWQ-V3 checkpoints become integer graphs in the arithmetic of the repository."""

import json
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_files import save_legacy, save_zip

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.networks import hawq
from qdeploy.integer.intervals import check_ranges
from qdeploy.ir.ops.conv import conv
from qdeploy.ir.run import Weights, run
from qdeploy.registry import open_model
from qdeploy.store.folder import Folder

WIDTHS = (8, 12, 16, 16)
PARTS = ("convbn_scaling_factor", "fc_scaling_factor", "weight_integer", "bias_integer", "act_scaling_factor")
State = dict[str, np.ndarray]


def bits_of(name: str, low: int) -> int:
    """As in the repository's configurations: the ends at 8 bits, streams at 16."""
    if name.endswith("quant_act_int32"):
        return 16
    return low if name.startswith("stage") else 8


def resnet18(low: int, scales: Callable[[np.random.Generator, int], np.ndarray]) -> State:
    """The state of a network of few channels, with scales that keep values in range."""
    random, state = np.random.default_rng(5), {}

    def layer(name: str, shape: tuple[int, ...], part: str = "convbn_scaling_factor") -> None:
        top = 1 << (bits_of(name, low) - 1)
        state[f"{name}.{part}"] = scales(random, shape[0])
        state[f"{name}.weight_integer"] = random.integers(-top, top, shape).astype(np.float32)
        state[f"{name}.bias_integer"] = random.integers(-500, 500, shape[0]).astype(np.float32)

    def act(name: str, scale: float) -> None:
        state[f"{name}.act_scaling_factor"] = np.array([scale], np.float32)

    act("quant_input", 0.02)
    layer("quant_init_block_convbn", (WIDTHS[0], 3, 7, 7))
    act("quant_act_int32", 0.001)
    before = WIDTHS[0]
    for stage, width in enumerate(WIDTHS, 1):
        for unit in (1, 2):
            name = f"stage{stage}.unit{unit}"
            act(f"{name}.quant_act", 0.06 if low == 8 else 0.5)
            layer(f"{name}.quant_convbn1", (width, before, 3, 3))
            act(f"{name}.quant_act1", 0.05 if low == 8 else 0.4)
            layer(f"{name}.quant_convbn2", (width, width, 3, 3))
            if unit == 1 and stage > 1:
                layer(f"{name}.quant_identity_convbn", (width, before, 1, 1))
            act(f"{name}.quant_act_int32", 0.0011)
            before = width
    act("quant_act_output", 0.04)
    layer("quant_output", (10, before), "fc_scaling_factor")
    return {key: np.asarray(value, np.float32) for key, value in state.items()}


def reference(state: State, x: np.ndarray, low: int) -> np.ndarray:
    """The repository's forward pass in float64, as its modules compute it."""
    get = lambda name: state[name].astype(np.float64)  # noqa: E731

    def fixed(z: np.ndarray, before: np.ndarray, name: str) -> np.ndarray:
        scale = get(f"{name}.act_scaling_factor")
        m, e = np.frexp(before.astype(np.float32).astype(np.float64) / scale)
        whole = np.array([int((Decimal(float(n)) * 2**31).quantize(Decimal(1), ROUND_HALF_UP)) for n in m], np.float64)
        shape = (1, -1, 1, 1)
        return np.rint(z * whole.reshape(shape) / 2.0 ** (31 - e).reshape(shape))

    def act(z: np.ndarray, before: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        bits = bits_of(name, low)
        limits = (0, 15) if bits == 4 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        return np.clip(fixed(z, before, name), *limits), get(f"{name}.act_scaling_factor")

    def layer(z: np.ndarray, scale: np.ndarray, name: str, stride: int) -> tuple[np.ndarray, np.ndarray]:
        weight = get(f"{name}.weight_integer")
        pads = [weight.shape[2] // 2] * 4
        total = conv(z, weight, get(f"{name}.bias_integer"), strides=[stride] * 2, pads=pads)
        return total, scale * get(f"{name}.convbn_scaling_factor")

    z, s = layer(x.astype(np.float64), get("quant_input.act_scaling_factor"), "quant_init_block_convbn", 2)
    padded = np.pad(z, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    z = np.max([padded[:, :, i : i + 112 : 2, j : j + 112 : 2] for i in range(3) for j in range(3)], axis=0)
    z, s = act(z, s, "quant_act_int32")
    z = np.maximum(z, 0)
    for stage in (1, 2, 3, 4):
        for unit in (1, 2):
            name, stride = f"stage{stage}.unit{unit}", 2 if unit == 1 and stage > 1 else 1
            a, a_scale = act(z, s, f"{name}.quant_act")
            other, other_scale = z, s
            if f"{name}.quant_identity_convbn.weight_integer" in state:
                other, other_scale = layer(a, a_scale, f"{name}.quant_identity_convbn", stride)
            b, b_scale = layer(a, a_scale, f"{name}.quant_convbn1", stride)
            b, b_scale = act(np.maximum(b, 0), b_scale, f"{name}.quant_act1")
            b, b_scale = layer(b, b_scale, f"{name}.quant_convbn2", 1)
            join = f"{name}.quant_act_int32"
            z = np.maximum(fixed(b, b_scale, join) + fixed(other, other_scale, join), 0)
            s = get(f"{join}.act_scaling_factor")
    z = np.trunc(z.mean(axis=(2, 3), keepdims=True) + 0.01)
    z, s = act(z, s, "quant_act_output")
    return z.reshape(len(z), -1) @ get("quant_output.weight_integer").T + get("quant_output.bias_integer")


def write(
    folder: Path,
    state: State,
    bits: Any = "uniform8",
    prefix: str = "module.",
    save: Callable[[Path, Any], None] = save_zip,
) -> Path:
    slices = {part: {prefix + key: value for key, value in state.items() if part in key} for part in PARTS}
    save(folder / hawq.CHECKPOINT, slices)
    (folder / hawq.CONFIG).write_text(json.dumps({"arch": "resnet18", "bits": bits}))
    return folder


def random_scales(random: np.random.Generator, count: int) -> np.ndarray:
    return random.uniform(0.0005, 0.003, count).astype(np.float32)


def powers(random: np.random.Generator, count: int) -> np.ndarray:
    return np.full(count, 2.0**-9)


@pytest.mark.parametrize(("low", "save"), [(8, save_zip), (4, save_legacy)])
def test_every_sum_of_the_last_layer_is_that_of_the_repository(tmp_path: Path, low: int, save: Any):
    state = resnet18(low, random_scales)
    state["quant_output.fc_scaling_factor"] = np.array([0.01], np.float32)
    model = open_model(write(tmp_path, state, f"uniform{low}", save=save))
    x = np.random.default_rng(1).integers(-128, 128, (1, 3, 224, 224)).astype(np.int8)
    (result,) = run(model.graph, {"input": x}, None, Weights(model))[0].values()
    wanted = reference(state, x, low)
    assert len(np.unique(wanted)) > 3
    np.testing.assert_array_equal(result, wanted)
    assert model.format == "hawq" and check_ranges(model.graph, model.tensors).values


def test_ties_are_rounded_to_even_as_pytorch_does(tmp_path: Path):
    state = resnet18(8, powers)
    for key in state:
        if key.endswith("act_scaling_factor"):
            state[key] = np.array([2.0 ** np.rint(np.log2(state[key][0]))], np.float32)
    model = hawq.read(Folder(write(tmp_path, state, prefix="")))
    x = np.random.default_rng(2).integers(-128, 128, (1, 3, 224, 224)).astype(np.int8)
    seen: dict[str, np.ndarray] = {}
    run(model.graph, {"input": x}, None, Weights(model), seen.__setitem__)
    wanted = reference(state, x, 8)
    scaled = seen["quant_output/sum"]
    np.testing.assert_array_equal(scaled, wanted)
    assert all(np.unique(seen[f"stage{i}.unit2.quant_act"]).size > 3 for i in (1, 2, 3, 4))


def test_stored_tensors_are_kept_and_proven(tmp_path: Path):
    state = resnet18(8, random_scales)
    model = hawq.read(Folder(write(tmp_path, state)))
    for key, value in state.items():
        np.testing.assert_array_equal(model.tensors[f"module.{key}"].decode(), value)
    assert all(origin.proven for origin in model.origins)


def test_a_scale_per_class_is_brought_to_the_greatest(tmp_path: Path):
    graph = hawq.read(Folder(write(tmp_path, resnet18(8, random_scales)))).graph
    assert graph.outputs[0].name == "logits" and graph.nodes[-1].op == "Requantize"


def test_bits_by_module_are_taken(tmp_path: Path):
    state = resnet18(8, random_scales)
    names = {key.rsplit(".", 1)[0] for key in state}
    bits = {name: bits_of(name, 8) for name in names} | {"stage2.unit1.quant_act": [4, "hook"]}
    graph = hawq.read(Folder(write(tmp_path, state, bits))).graph
    dtypes = {node.name: node.attrs["dtype"] for node in graph.nodes if node.op == "Requantize"}
    assert (dtypes["stage2.unit1.quant_act"], dtypes["stage2.unit2.quant_act"]) == ("U8", "I8")


def test_without_its_configuration_nothing_is_guessed(tmp_path: Path):
    write(tmp_path, resnet18(8, random_scales))
    (tmp_path / hawq.CONFIG).unlink()
    with pytest.raises(UnsupportedError, match="which network"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("stage1.unit1.quant_convbn1.weight_integer", 0.5, "not integers"),
        ("stage1.unit1.quant_convbn1.weight_integer", 200.0, "not integers"),
        ("stage1.unit1.quant_act.act_scaling_factor", 0.0, "not positive"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, key: str, value: float, what: str):
    state = resnet18(8, random_scales)
    state[key] = np.full_like(state[key], value)
    with pytest.raises(BadFileError, match=what):
        _ = hawq.read(Folder(write(tmp_path, state))).graph


def test_a_missing_module_is_named(tmp_path: Path):
    state = resnet18(8, random_scales)
    del state["stage3.unit2.quant_convbn2.bias_integer"]
    with pytest.raises(BadFileError) as caught:
        _ = hawq.read(Folder(write(tmp_path, state))).graph
    assert caught.value.found == "stage3.unit2.quant_convbn2.bias_integer"
