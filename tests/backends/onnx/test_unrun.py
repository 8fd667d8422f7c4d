"""Outputs that ONNX Runtime cannot run: said in the report and the exit code where it cannot run the source either."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qdeploy
from qdeploy.cli import main
from qdeploy.errors import ProofError

FLOAT = TensorProto.FLOAT


def _saved(folder: Path, nodes: list[onnx.NodeProto], kind: int = FLOAT, **opsets: int) -> Path:
    x, y = (helper.make_tensor_value_info(name, kind, [2, 32]) for name in "xy")
    weight = numpy_helper.from_array(np.eye(32, dtype=np.float32) * 3, "w")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight] if kind == FLOAT else [])
    versions = [helper.make_opsetid("", 22), *(helper.make_opsetid(name, v) for name, v in opsets.items())]
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=10), str(folder / "model.onnx"))
    return folder


def _custom(folder: Path) -> Path:
    """An operator of nobody's, behind one of whose form a sample can be run alone."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Mine", ["a"], ["y"], domain="mine")]
    return _saved(folder, nodes, mine=1)


def _without_kernel(folder: Path) -> Path:
    """A type that ONNX has, and ONNX Runtime has no kernel for."""
    return _saved(folder, [helper.make_node("Sin", ["x"], ["y"])], TensorProto.BFLOAT16)


@pytest.mark.parametrize(("network", "named"), [(_custom, "mine"), (_without_kernel, "Sin")])
@pytest.mark.parametrize("check", ["auto", "full"])
def test_what_cannot_be_run_is_written_and_said(
    tmp_path: Path, network: Callable[[Path], Path], named: str, check: str
):
    source = network(tmp_path / "source")
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), str(tmp_path / "out"), "--check", check])
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert ended.value.code == 4
    assert named in report["not_run"] and report["not_run"] in report["notes"]
    assert all(row["name"] != "model" for row in report["checks"])
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), str(tmp_path / "accepted"), "--check", "none"])
    assert not ended.value.code


def test_forms_that_can_be_run_alone_do_not_stand_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One form ran, the model did not: that is not a model that ran."""
    from qdeploy.backends.onnx import checking
    from qdeploy.contracts.results import CheckResult

    ran = [CheckResult("w", "linear: int4", 0.0, 1e-4), CheckResult("model", "model", 0.0, 0.0, "no operators of mine")]
    monkeypatch.setattr(checking, "check", lambda *_: ran)
    report = qdeploy.convert(_custom(tmp_path / "source"), tmp_path / "out")
    assert "no operators of mine" in report["not_run"]
    assert [row["name"] for row in report["checks"]] == ["w"]


def test_an_output_that_does_not_run_where_its_source_does_is_a_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from qdeploy.backends.onnx import checking

    source = _saved(tmp_path / "source", [helper.make_node("MatMul", ["x", "w"], ["y"])])
    sound, run = checking._run, checking.Case

    def broken(job, cases, path):
        cases[-1] = run("model", "model", 1e-3, job / "missing.onnx", cases[-1].runs)
        return sound(job, cases, path)

    monkeypatch.setattr(checking, "_run", broken)
    with pytest.raises(ProofError, match="does not run"):
        qdeploy.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_takes_too_long_is_not_run_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The process that runs it is ended by the system, and the output stands."""
    from qdeploy.backends.onnx import checking

    source = _saved(tmp_path / "source", [helper.make_node("MatMul", ["x", "w"], ["y"])])
    ended = subprocess.CompletedProcess([], -signal.SIGXCPU, "", "")
    monkeypatch.setattr(checking.subprocess, "run", lambda *args, **how: ended)
    report = qdeploy.convert(source, tmp_path / "out", to="onnx")
    assert "far longer" in report["not_run"]


def test_the_process_that_runs_a_network_is_bounded_by_the_size_of_its_files(tmp_path: Path):
    from qdeploy.backends.onnx import child

    (tmp_path / "model.onnx").write_bytes(bytes(1 << 20))
    limits = (
        "import resource, sys; from qdeploy.backends.onnx import child\n"
        f"child._limit([dict(model={str(tmp_path / 'model.onnx')!r}, source='')])\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0], resource.getrlimit(resource.RLIMIT_AS)[0])"
    )
    done = subprocess.run([sys.executable, "-c", limits], capture_output=True, text=True, check=True)
    seconds, size = map(int, done.stdout.split())
    assert seconds == child.SECONDS and child.MEMORY < size < child.MEMORY + (2 << 30)
