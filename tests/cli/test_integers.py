"""Networks of integers on the command line: calibrated, converted, verified, proven; one clear error for each lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

from qdeploy.cli import cli
from qdeploy.errors import BadArgumentError, UnsupportedError

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(4)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def refused(*arguments: object) -> Exception:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert isinstance(result.exception, BadArgumentError | UnsupportedError), result.output
    return result.exception


@pytest.fixture(scope="module")
def network(save_network: Callable[..., Path]) -> Path:
    """A small float network, and beside it data.npz."""
    weights = {
        "w1": RNG.standard_normal((8, 3, 3, 3)) / 5,
        "w2": RNG.standard_normal((8, 8, 3, 3)) / 8,
        "w3": RNG.standard_normal((5, 8)) / 3,
    }
    pads = {"kernel_shape": [3, 3], "pads": [1] * 4}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], **pads),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], **pads),
        helper.make_node("Add", ["c2", "r1"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["y"], transB=1),
    ]
    return save_network(nodes, weights)


@pytest.fixture(scope="module")
def strict(network: Path) -> Path:
    out = network.parent / "strict"
    run(
        "convert",
        network,
        out,
        "--integer",
        "strict",
        "--calibrate",
        network.parent / "data.npz",
        "--weight-bits",
        4,
        "--calibrate-method",
        "mse",
        "--rounding",
        "half_even",
        "-q",
    )
    return out


def test_the_report_says_bits_ranges_and_method(strict: Path):
    report = json.loads((strict / "report.json").read_text())
    how = report["integers"]
    assert how["bits"] == {"w1": [8, 8], "w2": [4, 8], "w3": [8, 8]}
    assert (how["method"], how["samples"], how["rounding"]) == ("mse", 40, "half_even")
    assert how["quantization"]["x"]["scale"] > 0
    low, high = how["ranges"]["x"]
    assert low < -1 and high > 1
    assert report["checks"] == [{"name": "model", "kind": "model", "error": 0.0, "limit": 0.0}]


def test_strict_is_proven_and_fast_is_not(strict: Path, network: Path, tmp_path: Path):
    assert run("verify", strict, "--integer-only").strip().endswith("integers only")
    assert json.loads(run("verify", strict, "--integer-only", "--json"))["floats"] == []
    data = network.parent / "data.npz"
    text = run("convert", network, tmp_path / "fast", "--integer", "fast", "--calibrate", data)
    assert "W8A8 x 3; calibrated by minmax on 40 samples" in text
    assert "NOT INTEGERS ONLY" in run("verify", tmp_path / "fast", "--integer-only", code=1)
    kinds = {n.op_type for n in onnx.load(tmp_path / "fast/model.onnx", load_external_data=False).graph.node}
    assert {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool"} <= kinds
    assert run("verify", network, tmp_path / "fast").strip().endswith("equal")


def test_verify_derives_the_integers_again(strict: Path, network: Path, tmp_path: Path):
    assert run("verify", network, strict).strip().endswith("equal")
    import shutil

    shutil.copytree(strict, tmp_path / "changed")
    model = onnx.load(tmp_path / "changed/model.onnx", load_external_data=False)
    model.graph.node[0].name = "another"
    (tmp_path / "changed/model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    assert "DIFFERENT" in run("verify", network, tmp_path / "changed", code=1)


def test_a_package_of_integers_goes_on_without_data(network: Path, tmp_path: Path):
    run("convert", network, tmp_path / "package", "--to", "ir", "--calibrate", network.parent / "data.npz", "-q")
    assert json.loads((tmp_path / "package/report.json").read_text())["integers"]["method"] == "minmax"
    run("convert", tmp_path / "package", tmp_path / "out", "--integer", "strict", "-q")
    assert run("verify", tmp_path / "out", "--integer-only").strip().endswith("integers only")
    error = refused("convert", tmp_path / "package", tmp_path / "no", "--integer", "strict", "--weight-bits", 4)
    assert "already" in str(error)


def test_bits_of_single_layers_come_from_a_file(network: Path, tmp_path: Path):
    (tmp_path / "bits.json").write_text('{"w2": [2, 4], "w3": 4}')
    data = network.parent / "data.npz"
    run(
        "convert",
        network,
        tmp_path / "out",
        "--integer",
        "strict",
        "--calibrate",
        data,
        "--layer-bits",
        tmp_path / "bits.json",
        "-q",
    )
    bits = json.loads((tmp_path / "out/report.json").read_text())["integers"]["bits"]
    assert bits == {"w1": [8, 8], "w2": [2, 4], "w3": [4, 4]}
    (tmp_path / "bits.json").write_text('{"w2": "four"}')
    error = refused(
        "convert",
        network,
        tmp_path / "no",
        "--integer",
        "strict",
        "--calibrate",
        data,
        "--layer-bits",
        tmp_path / "bits.json",
    )
    assert "bits per layer" in str(error)


@pytest.mark.parametrize("to", [("--integer", "strict"), ("--integer", "fast"), ("--to", "tvm")])
def test_a_network_without_scales_needs_data(network: Path, tmp_path: Path, to: tuple[str, str]):
    error = refused("convert", network, tmp_path / "out", *to)
    assert "no activation scales" in str(error) and "--calibrate" in str(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("mode", ["strict", "fast"])
def test_the_scales_of_a_quantized_source_are_enough(network: Path, tmp_path: Path, form: str, mode: str):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Data(CalibrationDataReader):
        left = [{"x": np.load(network.parent / "data.npz")["x"]}]  # noqa: RUF012

        def get_next(self) -> object:
            return self.left.pop() if self.left else None

    source = tmp_path / "quantized.onnx"
    quantize_static(network, source, Data(), quant_format=QuantFormat[form], per_channel=True)
    run("convert", source, tmp_path / "out", "--integer", mode, "-q")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert "method" not in report["integers"]
    assert report["checks"][0]["error"] <= (0 if mode == "strict" else 0.05)
    assert run("verify", source, tmp_path / "out").strip().endswith("equal")
    run("verify", tmp_path / "out", "--integer-only", code=0 if mode == "strict" else 1)


def test_what_does_not_fit_together_is_said(network: Path, tmp_path: Path):
    data = network.parent / "data.npz"
    assert "no such option" in str(refused("convert", network, tmp_path / "o", "--calibrate", data))
    assert "unknown calibration method" in str(
        refused(
            "convert",
            network,
            tmp_path / "o",
            "--integer",
            "strict",
            "--calibrate",
            data,
            "--calibrate-method",
            "guess",
        )
    )
    assert "unknown rounding" in str(
        refused("convert", network, tmp_path / "o", "--integer", "strict", "--calibrate", data, "--rounding", "up")
    )
    llama = ROOT / "examples/models/tiny-llama"
    assert "decoder" in str(refused("convert", llama, tmp_path / "o", "--integer", "strict"))
    assert "shown to compute" in str(refused("verify", network, "--integer-only"))
    run("verify", network, code=2)
    run("verify", network, network, "--integer-only", code=2)
