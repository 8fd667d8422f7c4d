"""A forward pass of residual networks in plain numpy, and states to run it on; nothing of the package's is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

State = dict[str, np.ndarray]
Weight = Callable[[str, np.ndarray], np.ndarray]
F = np.float32


def conv(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """Cross-correlation with a padding of half the kernel, as one product."""
    k = weight.shape[2]
    padded = np.pad(x, [(0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)])
    seen = np.lib.stride_tricks.sliding_window_view(padded, (k, k), (2, 3))[:, :, ::stride, ::stride]
    rows = seen.transpose(0, 2, 3, 1, 4, 5).reshape(*seen.shape[:1], *seen.shape[2:4], -1)
    return (rows @ weight.reshape(len(weight), -1).T).transpose(0, 3, 1, 2)


def forward(state: State, x: np.ndarray, weight: Weight, activation: Weight) -> np.ndarray:
    """Logits [N, classes]; `weight` and `activation` give what a layer multiplies."""
    state = {name.removeprefix("module."): array for name, array in state.items()}

    def layer(y: np.ndarray, name: str, stride: int) -> np.ndarray:
        return conv(activation(name, y), weight(name, state[f"{name}.weight"]), stride)

    def norm(y: np.ndarray, name: str) -> np.ndarray:
        scale, shift, mean, variance = (
            state[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(variance + F(1e-5)) * scale + shift

    large = state["conv1.weight"].shape[2] == 7
    y = np.maximum(norm(layer(x, "conv1", 2 if large else 1), "bn1"), 0)
    if large:
        padded = np.pad(y, [(0, 0), (0, 0), (1, 1), (1, 1)])  # behind a ReLU, 0 is as good as nothing
        y = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
    units = [key.removesuffix(".conv1.weight") for key in state if key.endswith(".conv1.weight")]
    for name in sorted(units, key=lambda unit: [int(n) for n in unit.removeprefix("layer").split(".")]):
        stride = 2 if name.endswith(".0") and not name.startswith("layer1") else 1
        three = f"{name}.conv3.weight" in state
        z = y
        for i in range(1, 4 if three else 3):
            z = norm(layer(z, f"{name}.conv{i}", stride if i == (2 if three else 1) else 1), f"{name}.bn{i}")
            z = np.maximum(z, 0) if i < (3 if three else 2) else z
        if f"{name}.downsample.0.weight" in state:
            y = norm(layer(y, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        elif y.shape != z.shape:
            more = (z.shape[1] - y.shape[1]) // 2
            y = np.pad(y[:, :, ::2, ::2], [(0, 0), (more, more), (0, 0), (0, 0)])
        y = np.maximum(y + z, 0)
    head = "linear" if "linear.weight" in state else "fc"
    flat = activation(head, y.mean(axis=(2, 3), dtype=F))
    return flat @ weight(head, state[f"{head}.weight"]).T + state[f"{head}.bias"]


def network(
    blocks: tuple[int, ...],
    widths: tuple[int, ...],
    kernel: int = 3,
    channels: int = 3,
    three: bool = False,
    projected: bool = True,
    head: str = "fc",
    seed: int = 7,
) -> State:
    """A state with numbers of the usual size."""
    random, state = np.random.default_rng(seed), {}

    def layer(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(F)

    def norm(name: str, n: int) -> None:
        state[f"{name}.weight"] = random.uniform(0.5, 1.5, n).astype(F) * random.choice([-1, 1], n, p=[0.1, 0.9])
        state[f"{name}.bias"] = random.uniform(-0.5, 0.5, n).astype(F)
        state[f"{name}.running_mean"] = random.uniform(-0.5, 0.5, n).astype(F)
        state[f"{name}.running_var"] = random.uniform(0.5, 1.5, n).astype(F)
        state[f"{name}.num_batches_tracked"] = np.array(100)

    layer("conv1", widths[0], channels, kernel, kernel)
    norm("bn1", widths[0])
    before = widths[0]
    for s, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
        out = width * (4 if three else 1)
        for u in range(count):
            name = f"layer{s}.{u}"
            shapes = (
                [(width, before, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
                if three
                else [(width, before, 3, 3), (width, width, 3, 3)]
            )
            for i, shape in enumerate(shapes, 1):
                layer(f"{name}.conv{i}", *shape)
                norm(f"{name}.bn{i}", shape[0])
            if projected and u == 0 and (s > 1 or before != out):
                layer(f"{name}.downsample.0", out, before, 1, 1)
                norm(f"{name}.downsample.1", out)
            before = out
    layer(head, 10, before)
    state[f"{head}.bias"] = random.uniform(-0.5, 0.5, 10).astype(F)
    return {name: array.astype(F) if array.dtype == np.float64 else array for name, array in state.items()}


def convolutions(state: State) -> list[str]:
    """The names of the layers inside of the network."""
    filters = [name for name, array in state.items() if name.endswith(".weight") and array.ndim == 4]
    return [name.removesuffix(".weight") for name in filters if name.startswith("layer")]


def mnist(testdata: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test images as the repository's networks take them, and their classes."""
    content = np.load(testdata / "vision/mnist/test_10000.npz")
    return ((content["x"][:count, None] / F(255) - F(0.131)) / F(0.308)).astype(F), content["y"][:count]


def cifar(testdata: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of CIFAR-10."""
    content = np.load(testdata / "vision/cifar10/test_249_lossless.npz")
    x = (content["x"][:count] / F(255) - np.array([0.491, 0.482, 0.447], F)) / np.array([0.247, 0.243, 0.262], F)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), F), content["y"][:count]
