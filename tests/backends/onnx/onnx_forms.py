"""Synthetic tensors, and running a form of one in ONNX Runtime: what the tests of the ONNX backend share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from qdeploy.backends.onnx.proto import DATA_FILE, GraphBuilder
from qdeploy.backends.onnx.rules import Ruling, rule
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, LowRank, Param, QTensor, Table, Term
from qdeploy.pack import bits
from qdeploy.progress import SILENT


def session(model: Path | bytes, **config: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in config.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    arguments = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(arguments, options, providers=["CPUExecutionProvider"])


def relative(found: np.ndarray, want: np.ndarray) -> float:
    norm = float(np.linalg.norm(want.astype(np.float64)))
    return float(np.linalg.norm(found.astype(np.float64) - want)) / (norm or 1.0)


def run_decoder(running: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Logits of a prompt, with empty caches."""
    feed: dict[str, np.ndarray] = {}
    for declared in running.get_inputs():
        if declared.name == "input_ids":
            feed[declared.name] = ids
        elif declared.name == "attention_mask":
            feed[declared.name] = np.ones_like(ids) if mask is None else mask
        else:
            _, heads, _, size = declared.shape
            feed[declared.name] = np.zeros((len(ids), heads, 0, size), np.float32)
    return running.run(["logits"], feed)[0]


@dataclass
class Written:
    """A form of one tensor as a model on disk."""

    path: Path
    ruling: Ruling
    builder: GraphBuilder

    def run(self, x: np.ndarray) -> np.ndarray:
        return session(self.path).run(None, {"x": x})[0]

    def proto(self) -> onnx.ModelProto:
        return onnx.load(self.path, load_external_data=False)


def write(
    folder: Path, tensor: QTensor, use: str = "linear", activations: str = "exact", requantize: bool = False
) -> Written:
    """Writes a model that is one product with a tensor, or one look-up in it."""
    ruling = rule("w", tensor, activations, requantize)
    builder, (rows, columns) = GraphBuilder(), tensor.shape
    if use == "linear":
        ruling.form.linear(builder, builder.input("x", onnx.TensorProto.FLOAT, (1, "tokens", columns)), "y")
    else:
        ruling.form.gather(builder, builder.input("x", onnx.TensorProto.INT64, (1, "tokens")), "y")
    builder.output("y", onnx.TensorProto.FLOAT, (1, "tokens", rows if use == "linear" else columns))
    builder.data.write(folder / DATA_FILE, SILENT)
    path = folder / "model.onnx"
    path.write_bytes(builder.model().SerializeToString())
    return Written(path, ruling, builder)


def error_of(folder: Path, tensor: QTensor, use: str = "linear", activations: str = "exact") -> float:
    """Relative error of ONNX Runtime against the numpy meaning, for one and for several tokens."""
    written, weight = write(folder, tensor, use, activations), tensor.decode()
    if use == "gather":
        ids = np.array([[0, len(weight) - 1, len(weight) // 2]])
        return relative(written.run(ids), weight[ids])
    x = np.random.default_rng(7).standard_normal((1, 5, tensor.shape[1])).astype(np.float32)
    want = x.astype(np.float64) @ weight.T.astype(np.float64)
    return max(relative(written.run(x), want), relative(written.run(x[:, :1]), want[:, :1]))


# ---- synthetic tensors ----------------------------------------------------------------------------------------------


def plain_codes(array: np.ndarray, dtype: str, table: str, key: str = "values") -> Codes:
    return Codes(array.shape, (Buffer.of(key, array, dtype),), PLAIN, table)


def packed(codes: np.ndarray, width: int, table: str | Table, key: str = "codes", **params: Param | None) -> Codes:
    data = Buffer.of(key, bits.pack(codes, width), "U8")
    return Codes(codes.shape, (data,), Layout("bits", width), table, **params)


def scales(rng: np.random.Generator, rows: int, columns: int, tile: tuple[int, int], key: str = "scale") -> Param:
    values = (rng.random((rows, columns)) * 0.05 + 0.01).astype(np.float32)
    return Param(plain_codes(values, "F32", "f32", key), tile)


def tensor_of(*values: Codes | LowRank, **rest: Any) -> QTensor:
    return QTensor(values[0].decoded_shape, "F32", tuple(Term(v) for v in values), **rest)


def affine_tensor(
    seed: int, rows: int, columns: int, width: int, group: int, zero: str = "codes", offset: bool = False
) -> QTensor:
    """A matrix of unsigned codes.

    Args:
        zero: "none", "middle" (all 2 ** (width - 1)), "codes" (packed integers) or "float".
    """
    rng = np.random.default_rng(seed)
    groups = -(-columns // group)
    codes = rng.integers(0, 1 << width, (rows, columns), dtype=np.uint8)
    zeros: Param | None = None
    if zero in ("middle", "codes"):
        chosen = rng.integers(0, 1 << width, (rows, groups), dtype=np.uint8)
        chosen = np.full_like(chosen, 1 << width - 1) if zero == "middle" else chosen
        zeros = Param(packed(chosen, width, f"uint{width}", "zero"), (1, group))
    elif zero == "float":
        chosen = (rng.random((rows, groups)) * ((1 << width) - 1)).astype(np.float32)
        zeros = Param(plain_codes(chosen, "F32", "f32", "zero"), (1, group))
    offsets = scales(rng, rows, groups, (1, group), "offset") if offset else None
    scale = scales(rng, rows, groups, (1, group))
    return tensor_of(packed(codes, width, f"uint{width}", zero=zeros, scale=scale, offset=offsets))
