"""The package: simple to read, complete, deterministic, and careful with what it reads."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qdeploy
from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.ir.package import Package
from qdeploy.store.folder import Folder

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples/models/tiny-llama-gptq"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("package") / "tiny"
    qdeploy.convert(TINY, target, to="ir")
    return target


def fingerprint(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def edit_manifest(source: Path, target: Path, change) -> Path:
    import shutil

    shutil.copytree(source, target)
    manifest = json.loads((target / "qdeploy.json").read_text())
    change(manifest)
    (target / "qdeploy.json").write_text(json.dumps(manifest))
    return target


def test_every_tensor_reads_back_with_the_same_codes_and_values(package: Path):
    source, again = qdeploy.load(TINY), qdeploy.load(package)
    assert list(source.tensors) == list(again.tensors)
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensor.decode(), again.tensors[name].decode())
    assert qdeploy.verify(TINY, package)["equal"]


def test_the_graph_reads_back(package: Path):
    source, again = qdeploy.load(TINY).graph, qdeploy.load(package).graph
    assert again.nodes == source.nodes
    assert (again.inputs, again.outputs, again.states, again.meta) == (
        source.inputs,
        source.outputs,
        source.states,
        source.meta,
    )
    for name, constant in source.constants.items():
        np.testing.assert_array_equal(again.constants[name].decode(), constant.decode())


def test_same_input_gives_the_same_bytes_whatever_the_number_of_jobs(package: Path, tmp_path: Path):
    qdeploy.convert(TINY, tmp_path / "again", to="ir", jobs=3)
    assert fingerprint(tmp_path / "again") == fingerprint(package)


def test_other_files_are_carried_byte_for_byte(package: Path):
    for path in TINY.iterdir():
        if path.suffix != ".safetensors":
            assert (package / "files" / path.name).read_bytes() == path.read_bytes()


def test_the_source_files_come_back_byte_for_byte(package: Path, tmp_path: Path):
    qdeploy.convert(package, tmp_path / "back", to="source")
    assert fingerprint(tmp_path / "back") == fingerprint(TINY)


def test_the_standard_library_and_numpy_read_it(package: Path):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from read_package import read_tensor
    finally:
        sys.path.pop(0)
    model = qdeploy.load(TINY)
    for name in (
        "model.embed_tokens.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    ):
        np.testing.assert_array_equal(read_tensor(package, name), model.tensors[name].decode())


def test_the_reading_example_is_short_and_runs(package: Path):
    script = ROOT / "examples/read_package.py"
    assert script.read_text().count("\n") < 150
    out = subprocess.run([sys.executable, script, package], capture_output=True, text=True, check=True)
    assert len(out.stdout.splitlines()) == len(qdeploy.load(TINY).tensors)


def test_checksums_find_a_single_flipped_bit(package: Path, tmp_path: Path):
    import shutil

    assert sum(1 for _ in Package(Folder(package)).verify()) > 0
    broken = tmp_path / "broken"
    shutil.copytree(package, broken)
    shard = broken / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 4
    shard.write_bytes(data)
    with pytest.raises(BadFileError, match="checksum"):
        list(Package(Folder(broken)).verify())


def test_an_unknown_requirement_is_refused_by_its_name(package: Path, tmp_path: Path):
    edited = edit_manifest(package, tmp_path / "p", lambda m: m["requires"].append("layout:quantum"))
    with pytest.raises(UnsupportedError, match="quantum"):
        qdeploy.load(edited)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(surprise=1),
        lambda m: m.pop("graph"),
        lambda m: m["tensors"].update({"model.norm.weight": [999, "shard-00001.safetensors"]}),
        lambda m: m["tensors"].update({"model.norm.weight": [0, "../shard-00001.safetensors"]}),
        lambda m: m["tensors"].update({"model.norm.weight": ["0", 3]}),
        lambda m: [e["terms"][0]["values"]["codes"].__setitem__(0, 1 << 40) for e in m["encodings"]],
        lambda m: [e["terms"][0]["values"].update(layout=["bits", 0]) for e in m["encodings"]],
        lambda m: [e["terms"][0]["values"].update(unknown=1) for e in m["encodings"]],
        lambda m: [e["terms"][0]["values"].update(table="uint9") for e in m["encodings"]],
        lambda m: [e.update(shape=[-1, 2]) for e in m["encodings"]],
    ],
    ids=[
        "new key",
        "no graph",
        "encoding number",
        "shard outside",
        "types",
        "huge grid",
        "layout",
        "codes key",
        "table",
        "shape",
    ],
)
def test_a_manifest_that_lies_is_refused(package: Path, tmp_path: Path, change):
    edited = edit_manifest(package, tmp_path / "p", change)
    with pytest.raises(QdeployError):
        qdeploy.load(edited).tensors["model.norm.weight"].decode()


@pytest.mark.parametrize("args", [{}, {"bits": "x"}, {"bits": 4, "columns": None}])
def test_a_forged_way_back_is_refused(package: Path, tmp_path: Path, args: dict[str, object]):
    def forge(manifest: dict) -> None:
        for row in manifest["sources"].values():
            row[2] = args if row[1] != "verbatim" else row[2]

    edited = edit_manifest(package, tmp_path / "p", forge)
    with pytest.raises(QdeployError):
        qdeploy.convert(edited, tmp_path / "back", to="source")
    assert not (tmp_path / "back").exists()


def test_a_group_map_that_points_outside_is_never_followed(testdata: Path, tmp_path: Path):
    source = testdata / "checkpoints/gptq4-g64-actorder-asym-tinyllama"
    qdeploy.convert(source, tmp_path / "p", to="ir")
    from safetensors.numpy import load_file, save_file

    shard = tmp_path / "p/shard-00001.safetensors"
    tensors = load_file(shard)
    name = next(k for k in tensors if k.endswith("#index"))
    tensors[name] = np.full_like(tensors[name], 1 << 20)
    save_file(tensors, shard)
    with pytest.raises(QdeployError):
        qdeploy.load(tmp_path / "p").tensors[name.rsplit("#", 1)[0]].decode()
