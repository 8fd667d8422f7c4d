"""OpenVINO networks written as text: constants, a chain that decompresses one of them, and a product."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WIDTHS = {"u4": 4, "i4": 4, "nf4": 4, "f4e2m1": 4, "u2": 2}


@dataclass
class Writer:
    """Collects layers and edges, and the bytes of constants."""

    layers: list[str] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)
    blob: bytes = b""

    def layer(
        self,
        name: str,
        kind: str,
        dims: tuple[int, ...],
        inputs: tuple[int, ...] = (),
        names: str = "",
        **data: str,
    ) -> int:
        number = len(self.layers)
        attributes = " ".join(f'{k}="{v}"' for k, v in data.items())
        ports = "".join(f'<port id="{i}"/>' for i in range(len(inputs)))
        extents = "".join(f"<dim>{n}</dim>" for n in dims)
        out = "" if kind == "Result" else f'<port id="9" precision="FP32" names="{names}">{extents}</port>'
        self.layers.append(
            f'<layer id="{number}" name="{name}" type="{kind}" version="opset1"><data {attributes}/>'
            f"<input>{ports}</input><output>{out}</output></layer>"
        )
        for i, source in enumerate(inputs):
            self.edges.append(f'<edge from-layer="{source}" from-port="9" to-layer="{number}" to-port="{i}"/>')
        return number

    def constant(self, name: str, kind: str, array: np.ndarray) -> int:
        data = packed(array, WIDTHS[kind]) if kind in WIDTHS else array.tobytes()
        where = {"offset": str(len(self.blob)), "size": str(len(data))}
        self.blob += data
        return self.layer(
            name, "Const", array.shape, element_type=kind, shape=", ".join(map(str, array.shape)), **where
        )

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "model.bin").write_bytes(self.blob)
        (folder / "model.xml").write_text(self.text())
        return folder / "model.xml"

    def text(self) -> str:
        layers, edges = "".join(self.layers), "".join(self.edges)
        return f'<?xml version="1.0"?><net name="n" version="11"><layers>{layers}</layers><edges>{edges}</edges></net>'


def packed(codes: np.ndarray, bits: int) -> bytes:
    """One little-endian stream over all codes, as a whole number."""
    number = sum(int(c) % (1 << bits) << (i * bits) for i, c in enumerate(codes.reshape(-1)))
    return number.to_bytes(-(-codes.size * bits // 8), "little")


def product(kind: str, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, shape: tuple[int, int]) -> Writer:
    """x [?, K] times the transpose of a weight [N, K] that is decompressed."""
    w = Writer()
    x = w.layer("x", "Parameter", (-1, shape[1]), names="x", shape=f"?,{shape[1]}", element_type="f32")
    value = w.constant("weight", kind, codes)
    value = w.layer("floats", "Convert", codes.shape, (value,), destination_type="f16")
    if zero is not None:
        stored = w.constant("weight/zero", kind, zero)
        converted = w.layer("zero_floats", "Convert", zero.shape, (stored,), destination_type="f16")
        value = w.layer("centred", "Subtract", codes.shape, (value, converted), auto_broadcast="numpy")
    factor = w.constant("weight/scale", "f8e8m0" if scale.dtype == np.uint8 else "f16", scale)
    if scale.dtype == np.uint8:
        factor = w.layer("scale_floats", "Convert", scale.shape, (factor,), destination_type="f16")
    value = w.layer("scaled", "Multiply", codes.shape, (value, factor), auto_broadcast="numpy")
    if codes.shape != shape:
        target = w.constant("shape", "i64", np.array(shape, np.int64))
        value = w.layer("merged", "Reshape", shape, (value, target), special_zero="false")
    value = w.layer("wide", "Convert", shape, (value,), destination_type="f32")
    y = w.layer("y", "MatMul", (-1, shape[0]), (x, value), names="y", transpose_a="false", transpose_b="true")
    w.layer("result", "Result", (), (y,))
    return w
