"""`qdeploy formats --ops`: the table of what runs where comes from the tables themselves."""

from __future__ import annotations

import json

from click.testing import CliRunner

from qdeploy.cli import cli
from qdeploy.ir.ops.table import OPS


def rows() -> dict[str, dict[str, object]]:
    result = CliRunner().invoke(cli, ["formats", "--ops", "--json"])
    assert result.exit_code == 0, result.output
    return {row["op"]: row for row in json.loads(result.stdout)}


def test_every_op_has_a_row_and_every_target_a_column():
    table = rows()
    assert set(table) == set(OPS)
    assert set(table["Linear"]["backends"]) == {"as integers", "onnx", "native", "tvm"}


def test_what_a_backend_lowers_is_yes_and_a_composite_is_expanded():
    table = rows()
    assert table["Attention"]["backends"] == {"as integers": "yes", "onnx": "yes", "native": "yes", "tvm": ""}
    assert table["IntegerConv"]["backends"]["tvm"] == table["IntegerConv"]["backends"]["onnx"] == "yes"
    assert table["GatedMlp"]["backends"]["onnx"] == "expanded" and table["GatedMlp"]["backends"]["native"] == "yes"
    assert table["Sin"]["backends"]["native"] == ""


def test_the_table_is_printed_with_a_column_per_target():
    result = CliRunner().invoke(cli, ["formats", "--ops"])
    assert result.exit_code == 0 and "keeps scale" in result.output
    assert all(word in result.output for word in ("onnx", "native", "tvm", "MaxPool"))
