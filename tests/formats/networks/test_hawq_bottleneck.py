"""HAWQ's ResNet-50, 50b and 101: the integer graph against the repository's forward pass, written here in float64.

Nothing of the interpreter's is used: convolution, pooling and quantization are spelt out (arXiv 2011.10680, 3.2, 3.3).
"""

import json
from pathlib import Path

import numpy as np
import pytest
from test_hawq import PARTS, State, bits_of
from torch_files import save_zip

from qdeploy.formats.networks import hawq
from qdeploy.integer.intervals import check_ranges
from qdeploy.ir.run import Weights, run
from qdeploy.registry import open_model

UNITS = {"resnet50": (3, 4, 6, 3), "resnet50b": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
WIDTHS = ((4, 8), (6, 12), (6, 14), (8, 16))  # of a stage: inside of a unit, and of the stream
Quantized = tuple[np.ndarray, np.ndarray]  # codes [N, C, H, W] and their scale, [1] or [C]


def convolved(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """One place of the kernel after the other."""
    size = weight.shape[2]
    padded = np.pad(x, [(0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2])
    rows, columns = (-(-n // stride) for n in x.shape[2:])
    total = np.zeros((len(x), len(weight), rows, columns))
    for i, j in np.ndindex(size, size):
        part = padded[:, :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        total += np.einsum("oc,nchw->nohw", weight[:, :, i, j], part)
    return total


class Forward:
    """The forward pass; with a random generator, it first makes each tensor that it asks for."""

    def __init__(self, arch: str, low: int, state: State, random: np.random.Generator | None = None) -> None:
        self.arch, self.low, self.state, self.random = arch, low, state, random

    def get(self, name: str, make: object) -> np.ndarray:
        if self.random is not None:
            self.state[name] = np.asarray(make, np.float32)
        return self.state[name].astype(np.float64)

    def integers(self, low: int, high: int, shape: object) -> object:
        return 0 if self.random is None else self.random.integers(low, high, shape)

    def fixed(self, x: Quantized, scale: np.ndarray) -> np.ndarray:
        """round(z m / 2^e), halves to even."""
        z, before = x
        m, e = np.frexp(before.astype(np.float32).astype(np.float64) / scale)
        return np.rint(z * (np.floor(m * 2.0**31 + 0.5) / 2.0 ** (31 - e)).reshape(1, -1, 1, 1))

    def act(self, x: Quantized, name: str) -> Quantized:
        bits = bits_of(name, self.low)
        low, high = (0, 15) if bits == 4 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        real = max(np.abs(x[0] * x[1].reshape(1, -1, 1, 1)).max(), 1e-3)
        scale = self.get(f"{name}.act_scaling_factor", [real / high * 0.9])
        return np.clip(self.fixed(x, scale), low, high), scale

    def conv(self, x: Quantized, name: str, out: int, size: int, stride: int = 1) -> Quantized:
        top = 1 << (bits_of(name, self.low) - 1)
        weight = self.get(f"{name}.weight_integer", self.integers(-top, top, (out, x[0].shape[1], size, size)))
        bias = self.get(f"{name}.bias_integer", self.integers(-4 * top, 6 * top, out))
        scales = self.get(
            f"{name}.convbn_scaling_factor", 0 if self.random is None else self.random.uniform(0.002, 0.02, out)
        )
        return convolved(x[0], weight, stride) + bias.reshape(1, -1, 1, 1), x[1] * scales

    def unit(self, x: Quantized, name: str, inside: int, out: int, stride: int) -> Quantized:
        first, second = (1, stride) if self.arch == "resnet50b" else (stride, 1)
        grows = stride != 1 or x[0].shape[1] != out
        codes, other = self.act(x, f"{name}.quant_act"), x
        if grows:
            other = self.conv(codes, f"{name}.quant_identity_convbn", out, 1, stride)
        for i, (width, size, step) in enumerate(((inside, 1, first), (inside, 3, second)), 1):
            total, scale = self.conv(codes, f"{name}.quant_convbn{i}", width, size, step)
            codes = self.act((np.maximum(total, 0), scale), f"{name}.quant_act{i}")
        body = self.conv(codes, f"{name}.quant_convbn3", out, 1)
        real = sum(np.abs(z * s.reshape(1, -1, 1, 1)).max() for z, s in (body, other))
        scale = self.get(f"{name}.quant_act_int32.act_scaling_factor", [real / 30000])
        return np.maximum(self.fixed(body, scale) + self.fixed(other, scale), 0), scale

    def run(self, x: np.ndarray) -> np.ndarray:
        z, s = self.conv(
            (x.astype(np.float64), self.get("quant_input.act_scaling_factor", [0.02])),
            "quant_init_convbn",
            WIDTHS[0][1],
            7,
            2,
        )
        padded = np.pad(z, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
        z = np.max([padded[:, :, i : i + 112 : 2, j : j + 112 : 2] for i, j in np.ndindex(3, 3)], axis=0)
        z, s = self.act((z, s), "quant_act_int32")
        stream = np.maximum(z, 0), s
        for stage, count in enumerate(UNITS[self.arch], 1):
            for unit in range(1, count + 1):
                stride = 2 if stage > 1 and unit == 1 else 1
                stream = self.unit(stream, f"stage{stage}.unit{unit}", *WIDTHS[stage - 1], stride)
        mean = np.trunc(stream[0].mean(axis=(2, 3), keepdims=True) + 0.01)
        z, s = self.act((mean, stream[1]), "quant_act_output")
        weight = self.get("quant_output.weight_integer", self.integers(-128, 128, (11, z.shape[1])))
        self.get("quant_output.fc_scaling_factor", [0.01])
        return z.reshape(len(z), -1) @ weight.T + self.get("quant_output.bias_integer", self.integers(-900, 900, 11))


def made(folder: Path, arch: str, low: int, codes: np.ndarray) -> State:
    """Writes a checkpoint whose scales suit the input."""
    state: State = {}
    Forward(arch, low, state, np.random.default_rng(len(arch) + low)).run(codes)
    slices = {part: {f"module.{key}": value for key, value in state.items() if part in key} for part in PARTS}
    folder.mkdir(exist_ok=True)
    save_zip(folder / hawq.CHECKPOINT, slices)
    (folder / hawq.CONFIG).write_text(json.dumps({"arch": arch, "bits": f"uniform{low}"}))
    return state


def found(folder: Path, codes: np.ndarray) -> np.ndarray:
    """The sums of the last layer by the graph, whose ranges are proven on the way."""
    model = open_model(folder)
    assert check_ranges(model.graph, model.tensors).values
    (sums,) = run(model.graph, {"input": codes}, None, Weights(model))[0].values()
    return sums


@pytest.mark.parametrize(("arch", "low"), [("resnet50", 8), ("resnet50", 4), ("resnet50b", 8), ("resnet101", 8)])
def test_every_sum_of_the_last_layer_is_that_of_the_repository(tmp_path: Path, arch: str, low: int):
    codes = np.random.default_rng(3).integers(-128, 128, (1, 3, 224, 224)).astype(np.int8)
    wanted = Forward(arch, low, made(tmp_path, arch, low, codes)).run(codes)
    assert len(np.unique(wanted)) > 9 and np.ptp(wanted) > 1000
    np.testing.assert_array_equal(found(tmp_path, codes), wanted)


def test_50_and_50b_halve_the_image_at_other_places(tmp_path: Path):
    """The same tensors are another network by name: nothing but hawq.json tells."""
    codes = np.random.default_rng(4).integers(-128, 128, (1, 3, 224, 224)).astype(np.int8)
    state = made(tmp_path, "resnet50", 8, codes)
    (tmp_path / hawq.CONFIG).write_text(json.dumps({"arch": "resnet50b", "bits": "uniform8"}))
    wanted = Forward("resnet50b", 8, state).run(codes)
    assert (wanted != Forward("resnet50", 8, state).run(codes)).any()
    np.testing.assert_array_equal(found(tmp_path, codes), wanted)
