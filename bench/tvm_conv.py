"""A ResNet-18 of integers (synthetic weights, 224 x 224) by TVM, next to ONNX Runtime's QLinear graph.

    python bench/tvm_conv.py [--runs 20] [--threads 1 2] [--bits 8 4] [--json FILE]

Both run in one process, in turns, so that a slow minute hits both; what counts is the ratio of the least times. Weights
are int8 (or int4, packed, on our side) and activations uint8; our residual streams have 16 bits, ONNX Runtime's 8.
ONNX Runtime runs twice: as it comes, where its 8-bit products may saturate on machines without VNNI, and with
`session.x64quantprecision`, which is exact as ours is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STAGES = (64, 128, 256, 512)
SIDE = 224
PAUSE = 0.05
"""Seconds before every turn: threads of the one before keep a core busy while they wait for work."""


def layers() -> list[tuple[str, int, int, int, int]]:
    """(name, output channels, input channels, kernel, stride) of every convolution of the blocks."""
    found, inner = [], STAGES[0]
    for stage, out in enumerate(STAGES):
        for unit in range(2):
            stride = 2 if stage and not unit else 1
            found += [(f"{stage}{unit}a", out, inner, 3, stride), (f"{stage}{unit}b", out, out, 3, 1)]
            if stride == 2:
                found.append((f"{stage}{unit}s", out, inner, 1, 2))
            inner = out
    return found


def weights(bits: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    top = (1 << (bits - 1)) - 1
    made = {"stem": rng.integers(-127, 128, (64, 3, 7, 7)).astype(np.int8)}
    for name, out, inner, kernel, _ in layers():
        made[name] = rng.integers(-top, top + 1, (out, inner, kernel, kernel)).astype(np.int8)
    made["fc"] = rng.integers(-127, 128, (1000, 512)).astype(np.int8)
    return made


class Integers:
    """Our graph."""

    def __init__(self, bits: int) -> None:
        from qdeploy.ir.graph import Graph, Value

        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.held = weights(bits)
        self.bits = bits
        out = self._network()
        self.graph = Graph((Value("x", "U8", ("batch", 3, SIDE, SIDE)),), (Value(out, "I32", ()),), tuple(self.nodes),
                           constants=self.constants, meta={"kind": "integer"})  # fmt: skip

    def _network(self) -> str:
        x = self.add("MaxPool", self.add("Relu", self.conv("x", "stem", 2, 3)), kernel_shape=[3, 3], strides=[2, 2],
                     pads=[1] * 4)  # fmt: skip
        stream = self.scaled(x, 2**-6, 64, "I16")
        listed = {name: rest for name, *rest in layers()}
        for stage, out in enumerate(STAGES):
            for unit in range(2):
                key = f"{stage}{unit}"
                low = self.scaled(stream, 2**-6, 1, "U8")
                h = self.add("Relu", self.conv(low, key + "a", listed[key + "a"][3], 1))
                h = self.conv(self.scaled(h, 2**-10, out, "U8"), key + "b", 1, 1)
                side = stream if key + "s" not in listed else self.conv(low, key + "s", 2, 0)
                parts = [self.scaled(h, 2**-6, out, "I16"), self.scaled(side, 0.5, out, "I16")]
                stream = self.scaled(self.add("Relu", self.add("IntegerAdd", *parts)), 0.9, 1, "I16")
        low = self.scaled(self.add("IntegerMean", stream, axes=[2, 3], keepdims=1), 2**-6, 1, "U8")
        return self.add("IntegerLinear", self.add("Flatten", low), self.constant(self.held["fc"]))

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """A node."""
        from qdeploy.ir.graph import Node

        self.nodes.append(Node(op, inputs, (f"v{len(self.nodes)}",), attrs, op))
        return f"v{len(self.nodes) - 1}"

    def constant(self, array: Any) -> str:
        """Integers."""
        from qdeploy.ir.tensor import Buffer, plain

        name = f"c{len(self.constants)}"
        dtype = "I32" if array.dtype == np.int32 else "I8"
        self.constants[name] = plain(Buffer.of(name, array, dtype), "int32" if dtype == "I32" else "int8")
        return name

    def conv(self, x: str, key: str, stride: int, pad: int) -> str:
        """A convolution."""
        bias = self.constant(np.zeros(len(self.held[key]), np.int32))
        return self.add("IntegerConv", x, self.constant(self.held[key]), bias, strides=[stride] * 2, pads=[pad] * 4)

    def scaled(self, x: str, factor: float, channels: int, dtype: str) -> str:
        """A requantization."""
        lo, hi = {"U8": (0, 255), "I16": (-32768, 32767)}[dtype]
        fraction, exponent = np.frexp(factor)
        m = self.constant(np.full(channels, int(fraction * (2**31 - 1)) | 1 << 30, np.int32))
        e = self.constant(np.full(channels, 31 - exponent, np.int32))
        return self.add("Requantize", x, m, e, lo=lo, hi=hi, dtype=dtype)


def qlinear(bits: int) -> bytes:
    """The same network in ONNX's QLinear operators."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in
            {"s": np.float32(0.05), "z": np.uint8(0), "wz": np.int8(0), "big": np.float32(4)}.items()]  # fmt: skip

    def add(op: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"v{len(nodes)}"], domain=domain, **attrs))
        return f"v{len(nodes) - 1}"

    def conv(x: str, key: str, stride: int, pad: int) -> str:
        out = len(codes[key])
        held.extend(numpy_helper.from_array(a, f"{key}{n}") for n, a in (
            ("w", codes[key]), ("ws", np.full(out, 0.01, np.float32)), ("wz", np.zeros(out, np.int8)),
            ("b", np.zeros(out, np.int32))))  # fmt: skip
        return add("QLinearConv", x, "s", "z", f"{key}w", f"{key}ws", f"{key}wz", "big", "z", f"{key}b",
                   strides=[stride] * 2, pads=[pad] * 4)  # fmt: skip

    codes = weights(bits)
    x = add("MaxPool", conv("x", "stem", 2, 3), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    listed = {name: rest for name, *rest in layers()}
    for key in (f"{stage}{unit}" for stage in range(4) for unit in range(2)):
        h = conv(conv(x, key + "a", listed[key + "a"][3], 1), key + "b", 1, 1)
        side = conv(x, key + "s", 2, 0) if key + "s" in listed else x
        x = add("QLinearAdd", h, "s", "z", side, "s", "z", "s", "z", domain="com.microsoft")
    x = add("Flatten", add("QLinearGlobalAveragePool", x, "s", "z", "s", "z", domain="com.microsoft"))
    held.append(numpy_helper.from_array(np.ascontiguousarray(codes["fc"].T), "fcw"))
    out = add("MatMulInteger", x, "fcw")
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3, SIDE, SIDE])],
                              [helper.make_tensor_value_info(out, TensorProto.INT32, None)], held)  # fmt: skip
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=sets, ir_version=10).SerializeToString())


def compiled(bits: int, folder: Path) -> float:
    """Compiles our network into a folder; returns the seconds that it took."""
    from qdeploy.backends import tvm
    from qdeploy.ir.model import Model

    made = Integers(bits)
    if bits == 4:
        for node in made.nodes:
            if node.op == "IntegerConv" and made.nodes.index(node):
                pack(made.constants, node.inputs[1])
    model = Model("made", "here", {}, build_graph=lambda _: made.graph)
    start = time.perf_counter()
    tvm.lower(model, folder, tvm.Options(forms=("library",)))
    return time.perf_counter() - start


def pack(constants: dict[str, Any], name: str) -> None:
    """Four bits to a weight."""
    from qdeploy.ir.element import as_value
    from qdeploy.ir.tensor import Buffer, Codes, Layout, QTensor, Term

    codes = as_value(constants[name]).astype(ml_dtypes.int4).astype(np.int8).view(np.uint8) & 15
    wide = np.pad(codes, [(0, 0)] * 3 + [(0, codes.shape[-1] % 2)])
    held = Buffer.of(name, wide[..., 0::2] | (wide[..., 1::2] << 4), "U8")
    constants[name] = QTensor(codes.shape, "I8", (Term(Codes(codes.shape, (held,), Layout("bits", 4), "int4")),))


def measure(folder: Path, bits: int, threads: int, runs: int) -> dict[str, float]:
    """Least milliseconds of everybody, in turns."""
    import onnxruntime

    from qdeploy.backends.tvm.engine import relax, tvm

    x = np.random.default_rng(1).integers(0, 256, (1, 3, SIDE, SIDE)).astype(np.uint8)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(folder / "model.so")), tvm.cpu())
    given = tvm.runtime.tensor(x)
    calls: dict[str, Any] = {"qdeploy": lambda: machine["main"](given)}
    for name, exact in (("onnxruntime", "0"), ("onnxruntime exact", "1")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.x64quantprecision", exact)
        session = onnxruntime.InferenceSession(qlinear(bits), options)
        calls[name] = lambda session=session: session.run(None, {"x": x})
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(runs):
        for name, call in calls.items():
            time.sleep(PAUSE)
            call()
            start = time.perf_counter()
            call()
            least[name] = min(least[name], 1e3 * (time.perf_counter() - start))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--json", default="")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(json.dumps(measure(Path(given.inside), given.bits[0], given.threads[0], given.runs)))
        return
    rows = []
    for bits in given.bits:
        with tempfile.TemporaryDirectory() as folder:
            seconds = compiled(bits, Path(folder))
            for threads in given.threads:
                command = [sys.executable, __file__, "--inside", folder, "--bits", str(bits), "--threads", str(threads),
                           "--runs", str(given.runs)]  # fmt: skip
                environment = {**os.environ, "TVM_NUM_THREADS": str(threads)}
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                times = json.loads(done.stdout.splitlines()[-1])
                ratios = {name: times["qdeploy"] / ms for name, ms in times.items() if name != "qdeploy"}
                rows.append({"bits": bits, "threads": threads, "compile_s": seconds, "ms": times, "ratios": ratios})
    print("bits threads  compile s  " + "  ".join(f"{name:>18}" for name in rows[0]["ms"]) + "   ratios")
    for row in rows:
        times = "  ".join(f"{ms:15.2f} ms" for ms in row["ms"].values())
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items())
        print(f"{row['bits']:4} {row['threads']:7}  {row['compile_s']:9.1f}  {times}   {ratios}")
    text = json.dumps(rows, indent=1)
    print(text)
    if given.json:
        Path(given.json).write_text(text)


if __name__ == "__main__":
    main()
