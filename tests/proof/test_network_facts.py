"""What `inspect` says of a network: its ends, its operators, and what stands between it and each target."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from qdeploy.cli import cli
from qdeploy.proof.survey import survey


def network(folder: Path, op: str, domain: str = "") -> Path:
    """A network of one weight and one operator behind it."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], [0.5] * 12)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(op, ["h"], ["y"], domain=domain)]
    ends = [[helper.make_tensor_value_info(name, 1, ["n", size])] for name, size in (("x", 4), ("y", 3))]
    domains = [helper.make_opsetid("", 21)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, [weight]), opset_imports=domains)
    model.ir_version = 10
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path


def test_inputs_outputs_operators_and_the_opset_are_shown(tmp_path: Path):
    facts = survey(network(tmp_path, "Relu"))["network"]
    assert facts["inputs"] == [{"name": "x", "type": "F32", "shape": ["n", 4]}]
    assert facts["outputs"] == [{"name": "y", "type": "F32", "shape": ["n", 3]}]
    assert facts["operators"] == {"MatMul": 1, "Relu": 1} and facts["version"] == 21


@pytest.mark.parametrize("op, tvm", [("Relu", "ready with --calibrate"), ("Acosh", "no integer form: Acosh")])
def test_each_target_says_whether_it_is_ready(tmp_path: Path, op: str, tvm: str):
    targets = survey(network(tmp_path, op))["network"]["targets"]
    assert targets["onnx"] == "ready" and targets["tvm"] == tvm and targets["native"].startswith("no: ")


def test_an_operator_of_another_domain_is_named(tmp_path: Path):
    targets = survey(network(tmp_path, "Magic", "com.example"))["network"]["targets"]
    assert "com.example.Magic" in targets["onnx"] and "Magic" in targets["tvm"]


def test_the_screen_has_a_line_per_target(tmp_path: Path):
    result = CliRunner().invoke(cli, ["inspect", str(network(tmp_path, "Relu"))])
    assert result.exit_code == 0, result.output
    assert "opset 21: 1 MatMul, 1 Relu" in result.output and "--to onnx: ready" in result.output


def test_a_language_model_says_nothing_of_operators():
    assert "network" not in survey(Path(__file__).parents[2] / "examples/models/tiny-llama-gptq")
