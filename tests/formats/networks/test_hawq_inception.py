"""InceptionV3 of HAWQ: the integer graph against the repository's forward pass in float64."""

import json
from pathlib import Path

import numpy as np
from test_hawq import PARTS, State
from torch_files import save_zip

from qdeploy.formats.networks import hawq
from qdeploy.integer.intervals import check_ranges
from qdeploy.ir.ops.conv import conv
from qdeploy.ir.run import Weights, run
from qdeploy.store.folder import Folder

ROOT = "features.q_init_block"
SEQUENCES = {"A": [[5], [3, 3]], "B": [[(1, 7), (7, 1)], [(7, 1), (1, 7), (7, 1), (1, 7)]], "C": [[], [3]]}
UNITS = ["AAA", "RBBBB", "RCC"]


class Forward:
    """Runs the float64 model; the first run, with a random generator, makes the state that it needs."""

    def __init__(self, state: State, random: np.random.Generator | None = None) -> None:
        self.state, self.random, self.bits = state, random, {}

    def get(self, name: str, make: np.ndarray | float) -> np.ndarray:
        if self.random is not None:
            self.state[name] = np.asarray(make, np.float32)
        return self.state[name].astype(np.float64)

    def act(self, z: np.ndarray, before: np.ndarray, name: str, bits: int) -> tuple[np.ndarray, np.ndarray]:
        self.bits[name], top = bits, (1 << (bits - 1)) - 1
        real = np.abs(z * before.reshape(1, -1, 1, 1)).max()
        scale = self.get(f"{name}.act_scaling_factor", [max(real, 1e-3) / top * 0.8])
        m, e = np.frexp(before.astype(np.float32).astype(np.float64) / scale)
        factor = (np.floor(m * 2**31 + 0.5) / 2.0 ** (31 - e)).reshape(1, -1, 1, 1)
        return np.clip(np.rint(z * factor), -top - 1, top), scale

    def conv(
        self,
        x: tuple,
        name: str,
        size: int | tuple[int, int],
        bits: int = 8,
        out: int = 4,
        stride: int = 1,
        padded: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        (z, scale), kernel, output = x, (size, size) if isinstance(size, int) else size, self.random is not None
        self.bits[f"{name}.q_convbn"] = 8
        shape = (out, z.shape[1], *kernel)
        weight = self.get(f"{name}.q_convbn.weight_integer", self.random.integers(-128, 128, shape) if output else 0)
        bias = self.get(f"{name}.q_convbn.bias_integer", self.random.integers(-900, 900, out) if output else 0)
        scales = self.get(
            f"{name}.q_convbn.convbn_scaling_factor", self.random.uniform(0.001, 0.004, out) if output else 0
        )
        pads = [k // 2 if padded else 0 for k in kernel] * 2
        total = np.maximum(conv(z, weight, bias, strides=[stride] * 2, pads=pads), 0)
        return self.act(total, scale * scales, f"{name}.q_activ", bits)

    def joined(self, parts: list, name: str) -> tuple[np.ndarray, np.ndarray]:
        scale = max((np.abs(z).max() * s.max() for z, s in parts)) / 32767
        scale = self.get(f"{name}.act_scaling_factor", [scale])
        return np.concatenate([self.act(z, s, name, 16)[0] for z, s in parts], axis=1), scale

    def branch(self, x: tuple, name: str, kind: str, sizes: list, halves: bool = False) -> tuple:
        x = self.act(*x, f"{name}.q_input_act", 16 if kind in ("mean", "max") else 8)
        if kind == "max":
            return pooled(x)
        if kind == "mean":
            z, (h, w) = np.pad(x[0], [(0, 0), (0, 0), (1, 1), (1, 1)]), x[0].shape[2:]
            mean = sum(z[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9
            x = self.act(np.trunc(mean + 0.01), x[1], f"{name}.q_pool_act", 8)
        if kind in ("mean", "one"):
            return self.conv(x, f"{name}.q_conv", 1, 16)
        for i, size in enumerate(sizes, 1):
            last = i == len(sizes)
            x = self.conv(
                x,
                f"{name}.q_conv_list.q_conv{i}",
                size,
                16 if last and kind == "list" else 8,
                stride=2 if halves and last else 1,
                padded=not (halves and last),
            )
        if kind == "list":
            return x
        return self.joined(
            [self.conv(x, f"{name}.q_conv{key}", size, 16) for key, size in (("1x3", (1, 3)), ("3x1", (3, 1)))],
            f"{name}.q_rescaling_activ",
        )

    def unit(self, x: tuple, name: str, kind: str, stage: int) -> tuple:
        branch = f"{name}.branches.branch"
        if kind == "R":
            lists = [[3], [1, 3, 3]] if stage == 2 else [[1, 3], [1, (1, 7), (7, 1), 3]]
            outputs = [self.branch(x, f"{branch}{i}", "list", sizes, True) for i, sizes in enumerate(lists, 1)]
            outputs.append(self.branch(x, f"{branch}3", "max", []))
        else:
            how = "split" if kind == "C" else "list"
            outputs = [self.branch(x, f"{branch}1", "one", [])]
            outputs += [self.branch(x, f"{branch}{i}", how, [1, *s]) for i, s in enumerate(SEQUENCES[kind], 2)]
            outputs.append(self.branch(x, f"{branch}4", "mean", []))
        return self.joined(outputs, f"{name}.q_rescaling_activ")

    def run(self, codes: np.ndarray) -> np.ndarray:
        self.bits[f"{ROOT}.q_input_activ"] = 8
        x = (codes.astype(np.float64), self.get(f"{ROOT}.q_input_activ.act_scaling_factor", [0.02]))
        for i, (size, stride, padded) in enumerate([(3, 2, False), (3, 1, False), (3, 1, True)], 1):
            x = self.conv(x, f"{ROOT}.q_conv{i}", size, stride=stride, padded=padded)
        x = self.conv(pooled(x), f"{ROOT}.q_conv4", 1)
        x = pooled(self.conv(x, f"{ROOT}.q_conv5", 3, 16, padded=False))
        for i, units in enumerate(UNITS, 1):
            for j, kind in enumerate(units, 1):
                x = self.unit(x, f"features.stage{i}.unit{j}", kind, i)
        mean = np.trunc(x[0].mean(axis=(2, 3), keepdims=True) + 0.01)
        z, _ = self.act(mean, x[1], "features.q_concat_activ", 8)
        output, self.bits["output.q_fc"] = self.random is not None, 8
        weight = self.get(
            "output.q_fc.weight_integer", self.random.integers(-128, 128, (7, z.shape[1])) if output else 0
        )
        self.get("output.q_fc.fc_scaling_factor", [0.01])
        return z.reshape(len(z), -1) @ weight.T + self.get("output.q_fc.bias_integer", np.arange(7.0))


def pooled(x: tuple) -> tuple:
    z, (h, w) = x[0], [(n - 3) // 2 * 2 + 1 for n in x[0].shape[2:]]
    return np.max([z[:, :, i : i + h : 2, j : j + w : 2] for i in range(3) for j in range(3)], axis=0), x[1]


def test_every_sum_of_the_last_layer_is_that_of_the_repository(tmp_path: Path):
    random, state = np.random.default_rng(9), {}
    x = random.integers(-128, 128, (1, 3, 299, 299)).astype(np.int8)
    output = Forward(state, random)
    output.run(x)
    save_zip(
        tmp_path / hawq.CHECKPOINT, {part: {f"module.{k}": v for k, v in state.items() if part in k} for part in PARTS}
    )
    (tmp_path / hawq.CONFIG).write_text(json.dumps({"arch": "inceptionv3", "bits": output.bits}))
    model = hawq.read(Folder(tmp_path))
    (result,) = run(model.graph, {"input": x}, None, Weights(model))[0].values()
    wanted = Forward(state).run(x)
    assert np.ptp(wanted) > 100
    np.testing.assert_array_equal(result, wanted)
    assert check_ranges(model.graph, model.tensors).values
