"""MobileNetV2 of HAWQ: the integer graph against the repository's forward pass in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_hawq import PARTS, State
from torch_files import save_zip

from qdeploy.formats.networks import hawq
from qdeploy.formats.networks.hawq_mobilenet import _conv6
from qdeploy.formats.networks.hawq_network import Builder, Config, Operand
from qdeploy.integer.intervals import check_ranges
from qdeploy.ir.ops.conv import conv
from qdeploy.ir.run import Weights, run
from qdeploy.passes.fold import plain_tensor
from qdeploy.store.folder import Folder

UNITS = ([4], [6, 6], [6] * 3, [8] * 4 + [8] * 3, [10] * 3 + [12])


class Forward:
    """Runs the float64 model; the first run, with a random generator, makes the state that it needs."""

    def __init__(self, state: State, random: np.random.Generator | None, spread: float) -> None:
        self.state, self.random, self.spread, self.bits = state, random, spread, {}

    def get(self, name: str, make: np.ndarray | float) -> np.ndarray:
        if self.random is not None:
            self.state[name] = np.asarray(make, np.float32)
        return self.state[name].astype(np.float64)

    def fixed(self, z: np.ndarray, before: np.ndarray, scale: np.ndarray) -> np.ndarray:
        m, e = np.frexp(before.astype(np.float32).astype(np.float64) / scale)
        return np.rint(z * (np.floor(m * 2**31 + 0.5) / 2.0 ** (31 - e)).reshape(1, -1, 1, 1))

    def act(self, z: np.ndarray, before: np.ndarray, name: str, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
        self.bits[name], top = bits, (1 << (bits - 1)) - 1
        real = max(np.abs(z * before.reshape(1, -1, 1, 1)).max(), 1e-3)
        scale = self.get(f"{name}.act_scaling_factor", [real / top * self.spread])
        return np.clip(self.fixed(z, before, scale), -top - 1, top), scale

    def conv(self, x: tuple, name: str, out: int, size: int, stride: int = 1, deep: bool = False) -> tuple:
        (z, scale), output = x, self.random is not None
        self.bits[name] = 8
        shape = (out, 1 if deep else z.shape[1], size, size)
        weight = self.get(f"{name}.weight_integer", self.random.integers(-128, 128, shape) if output else 0)
        bias = self.get(f"{name}.bias_integer", self.random.integers(-900, 900, out) if output else 0)
        scales = self.get(f"{name}.convbn_scaling_factor", self.random.uniform(0.002, 0.02, out) if output else 0)
        total = conv(z, weight, bias, strides=[stride] * 2, pads=[size // 2] * 4, group=out if deep else 1)
        return total, scale * scales, np.rint(np.float32(6) / scale.astype(np.float32) / scales.astype(np.float32))

    def conv6(self, x: tuple, name: str, act: str, *shape: int, bits: int = 8, deep: bool = False) -> tuple:
        total, scale, ceil = self.conv(x, name, *shape, deep=deep)
        return self.act(np.clip(total, 0, ceil.reshape(1, -1, 1, 1)), scale, act, bits)

    def unit(self, x: tuple, name: str, out: int, stride: int) -> tuple:
        channels = x[0].shape[1]
        c = self.act(*x, f"{name}.quant_act")
        c = self.conv6(c, f"{name}.conv1", f"{name}.quant_act1", 2 * channels, 1)
        c = self.conv6(c, f"{name}.conv2", f"{name}.quant_act2", 2 * channels, 3, stride, deep=True)
        total, scale, _ = self.conv(c, f"{name}.conv3", out, 1)
        join = f"{name}.quant_act_int32"
        if stride != 1 or channels != out:
            return self.act(total, scale, join, 16)
        self.bits[join] = 16
        output = self.get(f"{join}.act_scaling_factor", [np.abs(total * scale.reshape(1, -1, 1, 1)).max() / 20000])
        return self.fixed(total, scale, output) + self.fixed(*x, output), output

    def run(self, codes: np.ndarray) -> np.ndarray:
        self.bits["quant_input"] = 8
        x = (codes.astype(np.float64), self.get("quant_input.act_scaling_factor", [0.02]))
        x = self.conv6(x, "init_block", "quant_act_int32", 4, 3, 2, bits=16)
        for i, stage in enumerate(UNITS, 1):
            for j, out in enumerate(stage, 1):
                x = self.unit(x, f"features.stage{i}.unit{j}", out, 2 if j == 1 and i > 1 else 1)
        x = self.act(*x, "quant_act_before_final_block")
        x = self.conv6(x, "features.final_block", "quant_act_int32_final", 16, 1, bits=16)
        x = self.act(np.trunc(x[0].mean(axis=(2, 3), keepdims=True) + 0.01), x[1], "quant_act_output")
        self.bits["output"] = 8
        shape = (7, 16, 1, 1)
        weight = self.get("output.weight_integer", self.random.integers(-128, 128, shape) if self.random else 0)
        return x[0].reshape(len(codes), -1) @ weight.reshape(7, 16).T


@pytest.mark.parametrize("spread", [0.8, 1.0, 1.3])
def test_every_sum_of_the_last_layer_is_that_of_the_repository(tmp_path: Path, spread: float):
    random, state = np.random.default_rng(9), {}
    x = random.integers(-128, 128, (1, 3, 224, 224)).astype(np.int8)
    output = Forward(state, random, spread)
    output.run(x)
    save_zip(tmp_path / hawq.CHECKPOINT, {part: {k: v for k, v in state.items() if part in k} for part in PARTS})
    (tmp_path / hawq.CONFIG).write_text(json.dumps({"arch": "mobilenetv2_w1", "bits": output.bits}))
    model = hawq.read(Folder(tmp_path))
    (result,) = run(model.graph, {"input": x}, None, Weights(model))[0].values()
    wanted = Forward(state, None, spread).run(x)
    assert np.ptp(wanted) > 100
    np.testing.assert_array_equal(result, wanted)
    assert check_ranges(model.graph, model.tensors).values


@pytest.mark.parametrize(("scale", "rows"), [(6 / 127, 0), (6 / 20000, 4)])
def test_a_limit_per_channel_is_kept_where_codes_are_fine_enough_to_show_it(scale: float, rows: int):
    random = np.random.default_rng(0)
    contents = {
        "c.weight_integer": random.integers(-9, 9, (4, 3, 3, 3)),
        "c.bias_integer": np.zeros(4),
        "c.convbn_scaling_factor": random.uniform(0.02, 0.2, 4),
        "a.act_scaling_factor": np.array([scale]),
    }
    tensors = {name: plain_tensor(np.asarray(array, np.float32)) for name, array in contents.items()}
    build = Builder(Config("mobilenetv2_w1", {"c": 8, "a": 8 if scale > 0.01 else 16}), tensors)
    _conv6(build, Operand("input", np.array([0.01])), "c", "a")
    assert sum(node.op in ("IntegerMul", "IntegerAdd") for node in build.nodes) == rows
