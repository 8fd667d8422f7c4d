"""Integer-only networks by TVM, next to ONNX Runtime's QLinear graph of the same network.

    QDEPLOY_TESTDATA=DIR python bench/tvm_conv.py [--networks resnet18 resnet18-w4a8 resnet18-w4a4 resnet20 resnet8]
        [--threads 1 2] [--runs 15] [--json FILE]

resnet18 has synthetic weights (resnet18.py) of 8 or 4 bits; resnet20 is trained, and calibrated here; resnet8
is MLPerf Tiny's, from TFLite. Of the last two ONNX Runtime gets what `--to onnx --integer fast` makes.

All run in one process, in turns, so that a slow minute hits all; what counts is the ratio of the least times. ONNX
Runtime runs twice: as it comes, where its 8-bit products may saturate on machines without VNNI, and with
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

import numpy as np

PAUSE = 0.3
"""Seconds before every turn: threads of the one before keep a core busy while they wait for work."""
LEAST = 0.1
"""Seconds of a turn: short networks run several times."""


def synthetic(bits: int, activations: int, folder: Path) -> float:
    """Makes both forms of the synthetic network; returns the seconds that ours took to compile."""
    import resnet18

    from qdeploy.backends.tvm import BACKEND
    from qdeploy.backends.tvm.options import Options

    for form in ("onnx", "tvm"):
        (folder / form).mkdir()
    (folder / "onnx/model.onnx").write_bytes(resnet18.qlinear(bits))
    model = resnet18.model(bits, activations)
    start = time.perf_counter()
    BACKEND.lower(model, folder / "tvm", Options(forms=("library",)))
    return time.perf_counter() - start


def real(source: str, folder: Path, data: Any = None) -> float:
    """Converts a network of the data folder to both forms."""
    import qdeploy

    root, more = Path(os.environ["QDEPLOY_TESTDATA"]), {}
    if data is not None:
        np.savez(folder / "data.npz", x=data(root))
        more["calibrate"] = str(folder / "data.npz")
    qdeploy.convert(root / source, folder / "onnx", to="onnx", integer="fast", check="none", **more)
    start = time.perf_counter()
    qdeploy.convert(root / source, folder / "tvm", to="tvm", forms=("library",), check="none", **more)
    return time.perf_counter() - start


def images(root: Path) -> Any:
    """Images to calibrate with."""
    from integer_accuracy import SAMPLES, images

    return images(root / "vision/cifar10/calib_1024_jpeg.npz", SAMPLES)[0]


RESNET8 = "mlperf_tiny/pretrainedResnet_quant.tflite"
NETWORKS: dict[str, Any] = {
    "resnet18": lambda folder: synthetic(8, 8, folder),
    "resnet18-w4a8": lambda folder: synthetic(4, 8, folder),
    "resnet18-w4a4": lambda folder: synthetic(4, 4, folder),
    "resnet20": lambda folder: real("vision/cifar10/resnet20_fp32.onnx", folder, images),
    "resnet8": lambda folder: real(RESNET8, folder),
}


def bare_code(source: str) -> int:
    """Bytes of code of the bare form of a network of the data folder."""
    import qdeploy

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        path = Path(os.environ["QDEPLOY_TESTDATA"]) / source
        qdeploy.convert(path, out, to="tvm", forms=("bare",), check="none")
        command = ["size", str(out / "bare/kernels.o")]
        return int(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[1].split()[0]
        )


def calls(folder: Path, threads: int) -> dict[str, Any]:
    """A function of each runtime that runs the network once."""
    import onnxruntime

    from qdeploy.backends.tvm.engine import relax, tvm

    rng = np.random.default_rng(1)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(folder / "tvm/model.so")), tvm.cpu())
    entry = json.loads((folder / "tvm/tvm.json").read_text())["inputs"][0]
    arguments = tvm.runtime.tensor(codes(rng, entry["shape"], entry["dtype"]))
    main = machine["main"]
    results: dict[str, Any] = {"qdeploy": lambda: main(arguments)}
    for name, exact in (("onnxruntime", "0"), ("onnxruntime exact", "1")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", exact)
        session = onnxruntime.InferenceSession(str(folder / "onnx/model.onnx"), options)
        content = session.get_inputs()[0]
        shape = [n if isinstance(n, int) else 1 for n in content.shape]
        x = codes(rng, shape, content.type.removeprefix("tensor(").removesuffix(")"))
        results[name] = lambda session=session, name=content.name, x=x: session.run(None, {name: x})
    return results


def codes(rng: Any, shape: list[int], dtype: str) -> Any:
    """Random codes."""
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def measure(folder: Path, threads: int, runs: int) -> dict[str, float]:
    """Least milliseconds of everybody, in turns."""
    every = calls(folder, threads)
    least = dict.fromkeys(every, float("inf"))
    for _ in range(runs):
        for name, call in every.items():
            time.sleep(PAUSE)
            call()
            stop = time.perf_counter() + LEAST
            while (start := time.perf_counter()) < stop:
                call()
                least[name] = min(least[name], 1e3 * (time.perf_counter() - start))
    return least


def rows_of(name: str, threads: list[int], runs: int) -> list[dict[str, Any]]:
    """A network, compiled once and measured for each number of threads in a process of its own."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        seconds = NETWORKS[name](Path(folder))
        size = (Path(folder) / "tvm/model.so").stat().st_size
        for count in threads:
            command = [sys.executable, __file__, "--inside", folder, "--threads", str(count), "--runs", str(runs)]
            environment = {**os.environ, "TVM_NUM_THREADS": str(count)}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            times = json.loads(done.stdout.splitlines()[-1])
            ratios = {peer: times["qdeploy"] / ms for peer, ms in times.items() if peer != "qdeploy"}
            results.append(
                {"network": name, "threads": count, "compile_s": seconds, "bytes": size, "ms": times, "ratios": ratios}
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", default="")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(measure(Path(arguments.inside), arguments.threads[0], arguments.runs)))
        return
    if "QDEPLOY_TESTDATA" not in os.environ and {"resnet20", "resnet8"} & set(arguments.networks):
        parser.error("resnet20 and resnet8 are read from the folder that QDEPLOY_TESTDATA names")
    rows = [row for name in arguments.networks for row in rows_of(name, arguments.threads, arguments.runs)]
    print(
        "network        threads  compile s     MB  " + "  ".join(f"{name:>18}" for name in rows[0]["ms"]) + "   ratios"
    )
    for row in rows:
        times = "  ".join(f"{ms:15.3f} ms" for ms in row["ms"].values())
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items())
        size = row["bytes"] / 1e6
        print(f"{row['network']:14} {row['threads']:7}  {row['compile_s']:9.1f}  {size:5.1f}  {times}   {ratios}")
    if "resnet8" in arguments.networks:
        print(f"bare form of resnet8: {bare_code(RESNET8):,} bytes of code")
    text = json.dumps(rows, indent=1)
    if arguments.json:
        Path(arguments.json).write_text(text)


if __name__ == "__main__":
    main()
