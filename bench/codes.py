"""Are the codes, scales and zero-points of a converted model those of its source? Read without any of our code.

    python bench/codes.py SOURCE PACKAGE ONNX

The source is decoded with numpy from the layout of GPTQ or AWQ; the ONNX model is read as the inputs of its
MatMulNBits nodes, the package as safetensors. Some layers of each shape are compared, bit by bit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

Array = np.ndarray[Any, Any]
LAYERS = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.k_proj",
    "model.layers.3.mlp.down_proj",
    "model.layers.7.mlp.gate_proj",
    "model.layers.15.self_attn.o_proj",
)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word is column 8 * word + AWQ_ORDER[i]


def nibbles(words: Array) -> Array:
    """int32 [..., W] -> codes [..., 8 * W], low nibble first."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    return ((words.view(np.uint32)[..., None] >> shifts) & 15).reshape(*words.shape[:-1], -1).astype(np.uint8)


def awq(words: Array) -> Array:
    """int32 [R, W] -> codes [R, 8 * W] in the order of the columns."""
    fields = nibbles(words).reshape(len(words), -1, 8)
    columns = np.empty_like(fields)
    columns[..., AWQ_ORDER] = fields
    return columns.reshape(len(words), -1)


def source_layer(tensors: dict[str, Array], name: str, method: str) -> tuple[Array, Array, Array]:
    """Codes [N, K], scales [N, G] and zero-points [N, G] of a layer."""
    words, zeros = tensors[f"{name}.qweight"], tensors[f"{name}.qzeros"]
    scales = tensors[f"{name}.scales"].T
    if method == "awq":
        return awq(words).T, scales, awq(zeros).T
    codes = nibbles(np.ascontiguousarray(words.T))  # [N, K / 8] -> [N, K]
    return codes, scales, (nibbles(zeros).T + 1) & 15


def package_layer(tensors: dict[str, Array], name: str, columns: int) -> tuple[Array, Array, Array]:
    """The same of a package: buffers codes, scale and zero of the weight."""
    codes, scale, zero = (tensors[f"{name}.weight#{key}"] for key in ("codes", "scale", "zero"))
    return _split(codes)[:, :columns], scale, _split(zero)[:, : scale.shape[1]]


def onnx_layers(folder: Path) -> dict[str, tuple[Array, Array, Array]]:
    """Codes, scales and zero-points of every MatMulNBits node, by the name of its weight's layer."""
    import onnx

    path = next(folder.glob("*.onnx"))
    graph = onnx.load(path, load_external_data=False).graph
    stored = {t.name: t for t in graph.initializer}
    results = {}
    for node in graph.node:
        if node.op_type != "MatMulNBits":
            continue
        size = {a.name: a.i for a in node.attribute}
        rows, groups = size["N"], -(-size["K"] // size["block_size"])
        codes, scales = (_initializer(stored[name], folder) for name in node.input[1:3])
        zeros = _initializer(stored[node.input[3]], folder) if node.input[3:] and node.input[3] else np.uint8(0x88)
        zeros = (
            np.broadcast_to(zeros.reshape(rows, -1), (rows, -(-groups // 2)))
            if zeros.ndim
            else np.full((rows, -(-groups // 2)), zeros)
        )
        codes = _split(codes.reshape(rows, -1))[:, : size["K"]]
        results[node.input[1]] = (codes, scales.reshape(rows, groups), _split(zeros)[:, :groups])
    return results


def _initializer(tensor: Any, folder: Path) -> Array:
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    place = {entry.key: entry.value for entry in tensor.external_data}
    if not place:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    count = int(np.prod(tensor.dims))
    return np.fromfile(folder / place["location"], dtype, count, offset=int(place.get("offset", 0)))


def _split(packed: Array) -> Array:
    """uint8 [R, B] -> [R, 2 * B], low nibble first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _tensors(folder: Path, wanted: tuple[str, ...]) -> dict[str, Array]:
    results: dict[str, Array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if name.startswith(wanted)]  # noqa: SIM118 (no mapping)
            results |= {name: file.get_tensor(name) for name in names}
    return results


def main() -> None:
    source, package, onnx = map(Path, sys.argv[1:4])
    method = json.loads((source / "config.json").read_text())["quantization_config"]["quant_method"]
    stored, carried = _tensors(source, LAYERS), _tensors(package, LAYERS)
    lowered = onnx_layers(onnx)
    equal = 0
    for name in LAYERS:
        wanted = source_layer(stored, name, method)
        node = next(v for key, v in lowered.items() if f"{name}." in key)
        for where, got in {"package": package_layer(carried, name, wanted[0].shape[1]), "ONNX": node}.items():
            same = all(np.array_equal(a, b) for a, b in zip(wanted, got, strict=True))
            equal += same
            print(f"{'equal' if same else 'DIFFERENT':<10}{where:<9}{name} {list(wanted[0].shape)}")
    print(json.dumps([equal, 2 * len(LAYERS)]))


if __name__ == "__main__":
    main()
