"""Bits per layer on the command line: chosen within a limit, taken by a conversion, one clear error for each lack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper

import qdeploy
from qdeploy.cli import cli
from qdeploy.errors import BadArgumentError, OutputError, QdeployError, UnsupportedError

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(4)
FREE = ("w2", "w3", "ws")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def refused(*arguments: object) -> QdeployError:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert isinstance(result.exception, BadArgumentError | UnsupportedError | OutputError), result.output
    assert result.exception.exit_code == 2
    return result.exception


@pytest.fixture(scope="module")
def network(save_network: Callable[..., Path]) -> Path:
    """A block whose shortcut has a convolution, and beside it data.npz."""
    weights = {
        "w1": RNG.standard_normal((8, 3, 3, 3)) / 5,
        "w2": RNG.standard_normal((8, 8, 3, 3)) / 8,
        "w3": RNG.standard_normal((8, 8, 3, 3)) / 8,
        "ws": RNG.standard_normal((8, 8, 1, 1)) / 3,
        "w4": RNG.standard_normal((8, 5)) / 3,
    }
    pads = {"kernel_shape": [3, 3], "pads": [1] * 4}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], **pads),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], **pads),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], **pads),
        helper.make_node("Conv", ["r1", "ws"], ["cs"]),
        helper.make_node("Add", ["c3", "cs"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w4"], ["y"]),
    ]
    return save_network(nodes, weights)


@pytest.fixture(scope="module")
def asked(network: Path) -> tuple[object, ...]:
    return ("allocate", network, "--calibrate", network.parent / "data.npz", "--limit")


@pytest.mark.parametrize("sensitivity", ["output", "weights", "hessian"])
def test_a_ratio_lies_between_the_least_and_the_greatest_size(asked: tuple, sensitivity: str):
    result = json.loads(run(*asked, "size:0.5", "--sensitivity", sensitivity, "--json"))
    free, fixed = 2 * 576 + 64, 216 + 40
    assert result["limit"]["least"] == free / 2 + fixed and result["limit"]["greatest"] == free + fixed
    assert result["limit"]["cost"] == 0.75 * free + fixed >= result["cost"]
    assert result["bits"]["w1"] == result["bits"]["w4"] == [8, 8]
    assert result["bits"]["w2"] == result["bits"]["ws"] and result["layers"]["ws"]["tied"] == ["w2", "ws"]
    assert {tuple(result["bits"][name]) for name in FREE} <= {(8, 8), (4, 8)}
    assert result["cost"] == sum(row["weights"] * result["bits"][n][0] / 8 for n, row in result["layers"].items())
    for name in FREE:
        loss = result["layers"][name]["loss"]
        assert loss["4x8"] > loss["8x8"] > 0
        assert ("trace_error" in result["layers"][name]) == (sensitivity == "hessian")


def test_the_ends_of_the_range_are_all_of_few_and_all_of_many_bits(asked: tuple):
    for ratio, weights in ((0, 4), (1, 8)):
        bits = json.loads(run(*asked, f"size:{ratio}", "--sensitivity", "weights", "--json"))["bits"]
        assert [bits[name] for name in FREE] == [[weights, 8]] * 3


def test_bit_operations_are_products_times_the_bits_of_both_factors(asked: tuple):
    result = json.loads(run(*asked, "bops:0.4", "--choices", "8x8,4x4", "--json"))
    assert result["layers"]["w2"]["cost"] == {"8x8": 576 * 64 * 64.0, "4x4": 576 * 64 * 16.0}
    assert result["layers"]["w4"]["cost"] == {"8x8": 40 * 64.0}
    assert result["cost"] <= result["limit"]["cost"]


def test_an_absolute_limit_counts_the_whole_network(asked: tuple):
    result = json.loads(run(*asked, "size:1.2kB", "--json"))
    assert result["limit"]["cost"] == 1200 >= result["cost"]
    error = refused(*asked, "size:500B")
    assert error.what == "no choice of bits meets the limit" and error.allowed == "864 B or more"


def test_layers_can_be_fixed_and_freed(asked: tuple):
    result = json.loads(run(*asked, "size:0", "--fixed", "none", "--sensitivity", "weights", "--json"))
    assert {tuple(bits) for bits in result["bits"].values()} == {(4, 8)}
    result = json.loads(run(*asked, "size:0", "--fixed", "first,w3", "--sensitivity", "weights", "--json"))
    assert [n for n, bits in result["bits"].items() if bits == [8, 8]] == ["w1", "w3"]
    error = refused(*asked, "size:0", "--fixed", "w9")
    assert error.found == "w9" and "w3" in error.allowed
    assert "no layer is left" in str(refused(*asked, "size:0", "--fixed", "w1,w2,w3,ws,w4"))


def test_ties_can_be_left_out(asked: tuple):
    result = json.loads(run(*asked, "size:0.5", "--no-ties", "--json"))
    assert all(row["tied"] == [] for row in result["layers"].values())
    tied = json.loads(run(*asked, "size:0.5", "--json"))
    assert result["loss"] <= tied["loss"] * (1 + 1e-6)


def test_the_table_names_every_layer_and_the_totals(asked: tuple):
    text = run(*asked, "size:0.5", "--sensitivity", "hessian", "--samples", 16)
    for word in ("w1", "w4", "fixed", "tied", "4x8", "trace / weights", "±", "1,472", "size:0.5", "16 samples"):
        assert word in text


def test_what_is_written_is_what_a_conversion_takes(asked: tuple, network: Path, tmp_path: Path):
    bits = tmp_path / "bits.json"
    run(*asked, "size:0.5", "--out", bits, "-q")
    assert "the output exists" in str(refused(*asked, "size:0.5", "--out", bits))
    run(*asked, "size:0.5", "--out", bits, "--force", "-q")
    assert [p.name for p in tmp_path.iterdir()] == ["bits.json"]
    data = network.parent / "data.npz"
    run("convert", network, tmp_path / "out", "--integer", "strict", "--calibrate", data, "--layer-bits", bits, "-q")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["integers"]["bits"] == json.loads(bits.read_text())


@pytest.mark.parametrize("to", [("--integer", "strict"), ("--to", "ir")])
def test_one_command_chooses_and_converts(network: Path, tmp_path: Path, to: tuple[str, str]):
    data, spec = network.parent / "data.npz", "size:0.5,sensitivity=hessian"
    run("convert", network, tmp_path / "out", *to, "--calibrate", data, "--allocate", spec, "-q")
    report = json.loads((tmp_path / "out/report.json").read_text())
    wanted = qdeploy.allocate(network, data, "size:0.5", sensitivity="hessian")["bits"]
    assert report["integers"]["bits"] == report["options"]["layer_bits"] == wanted
    assert report["options"]["allocate"] == spec
    if "--integer" in to:
        assert run("verify", network, tmp_path / "out").strip().endswith("equal")


@pytest.mark.parametrize(
    "more",
    [
        ("--weight-bits", 4),
        ("--allocate", "size:2"),
        ("--allocate", "size:0.5,speed=1"),
        ("--allocate", "size:0.5,samples=x"),
        ("--layer-bits", "x.json"),
    ],
)
def test_bits_are_asked_for_in_one_way(network: Path, tmp_path: Path, more: tuple):
    refused(
        "convert",
        network,
        tmp_path / "out",
        "--integer",
        "strict",
        "--calibrate",
        network.parent / "data.npz",
        "--allocate",
        "size:0.5",
        *more,
    )
    assert list(tmp_path.iterdir()) == []


def test_bits_are_for_networks_of_integers(network: Path, tmp_path: Path):
    requests = ("convert", network, tmp_path / "o", "--allocate", "size:0.5")
    assert "no such option" in str(refused(*requests, "--calibrate", network.parent / "data.npz"))
    assert "no calibration data" in str(refused(*requests, "--integer", "strict"))


def test_what_does_not_fit_together_is_said(asked: tuple, network: Path, tmp_path: Path):
    assert "unknown sensitivity" in str(refused(*asked, "size:0.5", "--sensitivity", "guess"))
    alike = ("--sensitivity", "hessian", "--choices", "4x8,4x4")
    assert "bits of inputs alone" in str(refused(*asked, "size:0.5", *alike))
    assert "choices of bits" in str(refused(*asked, "size:0.5", "--choices", "3"))
    assert "table of latencies" in str(refused(*asked, "latency:0.5"))
    assert "table of latencies" in str(refused(*asked, "size:0.5", "--latency", "t.json"))
    assert "cannot be read" in str(refused(*asked, "latency:0.5", "--latency", tmp_path / "none.json"))
    assert "cannot be read" in str(refused("allocate", network, "--calibrate", network, "--limit", "size:0.5"))
    np.savez(tmp_path / "wrong.npz", x=np.zeros((4, 1, 8, 8), np.float32))
    refused("allocate", network, "--calibrate", tmp_path / "wrong.npz", "--limit", "size:0.5")
    llama = ROOT / "examples/models/tiny-llama"
    data = network.parent / "data.npz"
    assert "decoder" in str(refused("allocate", llama, "--calibrate", data, "--limit", "size:0.5"))
    run("allocate", network, "--limit", "size:0.5", code=2)
    with pytest.raises(BadArgumentError, match="no such option"):
        qdeploy.allocate(network, network.parent / "data.npz", "size:0.5", bits=4)


def test_networks_whose_bits_are_given_are_refused(network: Path, tmp_path: Path):
    data = network.parent / "data.npz"
    run("convert", network, tmp_path / "package", "--to", "ir", "--calibrate", data, "-q")
    assert "already" in str(refused("allocate", tmp_path / "package", "--calibrate", data, "--limit", "size:0.5"))


def table(**changed: object) -> dict:
    """Latencies of the network: 4 bits are faster, but in the shortcut."""
    conv, one = "Conv 1x8x8x8 by 8x8x3x3, pads 1 1 1 1", "Conv 1x8x8x8 by 8x8x1x1"
    rows = {
        "Conv 1x3x8x8 by 8x3x3x3, pads 1 1 1 1": {"8x8": 2e-5},
        "Linear 1x8 by 5x8": {"8x8": 1e-6},
        conv: {"8x8": 5e-5, "4x8": 3e-5},
        one: {"8x8": 1e-5, "4x8": 1.5e-5},
    }
    return {"axes": {"n": 1}, "layers": {**rows, **changed}}


def test_latencies_come_from_a_table(asked: tuple, tmp_path: Path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table()))
    result = json.loads(run(*asked, "latency:0.5", "--latency", path, "--json"))
    low, high = (2e-5 + 1e-6 + part for part in (3e-5 + 4.5e-5, 5e-5 + 6e-5))  # w2 and ws are tied
    assert result["limit"]["least"] == pytest.approx(low) and result["limit"]["greatest"] == pytest.approx(high)
    assert result["cost"] <= (low + high) / 2
    error = refused(*asked, "latency:1us", "--latency", path)
    assert error.allowed == "96 us or more"
    error = refused(*asked, "latency:1ms", "--latency", path, "--choices", "8,2")
    assert "misses a layer" in error.what and "w2" in error.found and "2x8" in error.found


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"layers": 3}',
        '{"layers": {"a": 3}}',
        '{"layers": {"a": {"8x8": -1}}}',
        "[" * 99999,
        '{"layers": {"a": {"8x8": NaN}}}',
        '{"layers": {}, "axes": []}',
        '{"layers": {}, "axes": {"m": 2}}',
        '{"layers": {}, "axes": {"n": "many"}}',
    ],
)
def test_what_is_no_table_is_refused(asked: tuple, tmp_path: Path, content: str):
    (tmp_path / "table.json").write_text(content)
    refused(*asked, "latency:0.5", "--latency", tmp_path / "table.json")


def test_an_interruption_leaves_nothing(asked: tuple, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "qdeploy",
        *map(str, asked),
        "size:0.5",
        "--sensitivity",
        "hessian",
        "--out",
        str(tmp_path / "bits.json"),
    ]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True)
    assert child.stderr is not None
    for line in child.stderr:
        if "Hessian" in line:
            break
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(20) == 130 or (tmp_path / "bits.json").is_file()
    child.stderr.close()
    assert not [p for p in tmp_path.iterdir() if p.name != "bits.json"]


@pytest.mark.skipif(find_spec("tvm") is None, reason="TVM is not installed")
def test_layers_of_this_machine_are_timed_and_their_table_is_taken(asked: tuple, network: Path, tmp_path: Path):
    path = tmp_path / "table.json"
    text = run("bench", network, "--layers", "--threads", 1, "--choices", "8,4", "--out", path)
    result = json.loads(path.read_text())
    assert set(result["layers"]) == set(table()["layers"])  # two of the convolutions are one shape
    assert all(set(row) == {"8x8", "4x8"} and min(row.values()) > 0 for row in result["layers"].values())
    assert result["threads"] == 1 and result["axes"] == {"n": 1} and result["machine"]["cores"] >= 1
    assert result["target"] in text and result["target"] != "host"
    chosen = json.loads(run(*asked, "latency:0.5", "--latency", path, "--json"))
    assert chosen["cost"] <= chosen["limit"]["cost"]


def test_bench_says_what_does_not_fit_together(network: Path, tmp_path: Path):
    run("bench", network, "--choices", "8,4", code=2)
    run("bench", network, "--layers", "--axis", "n", code=2)
    assert "no such free axis" in str(refused("bench", network, "--layers", "--axis", "m=2"))
    assert "choices of bits" in str(refused("bench", network, "--layers", "--choices", "5"))
    assert "decoder" in str(refused("bench", ROOT / "examples/models/tiny-llama", "--layers"))
    (tmp_path / "t.json").write_text("")
    assert "the output exists" in str(refused("bench", network, "--layers", "--out", tmp_path / "t.json"))
    if find_spec("tvm") is not None:
        assert "no such target" in str(refused("bench", network, "--layers", "--target", "z80"))
