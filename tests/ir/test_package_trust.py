"""A package is not trusted: its bytes are compared with their checksums, and its JSON files with their form."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qdeploy
from qdeploy.errors import BadFileError, QdeployError
from qdeploy.ir.run import Weights

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama-gptq"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("package") / "p"
    qdeploy.convert(TINY, target, to="ir")
    return target


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "p"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file; the manifest's checksum is mended, as an attacker would."""
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))
    if path.name == "qdeploy.json":
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sums = path.with_name("checksums.json")
        sums.write_text(json.dumps({**json.loads(sums.read_text()), "manifest": digest}))


def flip(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 0x10
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("to", ["ir", "onnx", "native", "source"])
def test_flipped_bytes_are_an_error_whatever_is_made_of_them(copy: Path, tmp_path: Path, to: str):
    shard = copy / "shard-00001.safetensors"
    flip(shard, -40, shard.stat().st_size // 2)
    with pytest.raises(BadFileError, match="checksum differs"):
        qdeploy.convert(copy, tmp_path / "out", to=to, check="none")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["files/config.json", "files/tokenizer.json", "source/model.safetensors.head"])
def test_flipped_bytes_of_a_carried_file_are_an_error(copy: Path, tmp_path: Path, name: str):
    flip(copy / name, 40)
    with pytest.raises(BadFileError, match="checksum differs"):
        qdeploy.convert(copy, tmp_path / "out", to="source")


def test_a_changed_manifest_is_an_error(copy: Path):
    flip(copy / "qdeploy.json", -10)
    with pytest.raises(BadFileError):
        qdeploy.load(copy)


@pytest.mark.parametrize("group", ["shard-00001.safetensors", "files", "manifest"])
def test_missing_sums_are_errors(copy: Path, tmp_path: Path, group: str):
    edit(copy / "checksums.json", lambda sums: sums.pop(group) and None)
    with pytest.raises(BadFileError, match="checksum is missing"):
        qdeploy.convert(copy, tmp_path / "out", to="source")


def test_a_package_without_checksums_is_an_error_or_read_unverified(copy: Path, tmp_path: Path):
    (copy / "checksums.json").unlink()
    with pytest.raises(BadFileError, match="checksums of a package are missing"):
        qdeploy.load(copy)
    qdeploy.convert(copy, tmp_path / "out", to="source", no_verify=True)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()


def test_every_entry_is_checked_once(copy: Path, monkeypatch: pytest.MonkeyPatch):
    from qdeploy.ir import package_sums

    seen: list[str] = []
    original = package_sums._compare
    monkeypatch.setattr(package_sums, "_compare", lambda *a: (seen.append(a[0]), original(*a))[1])
    model = qdeploy.load(copy)
    for _ in range(2):
        for name in model.tensors:
            model.tensors[name].decode()
    assert len(seen) == len(set(seen)) and len(seen) > len(model.tensors)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value; of long lists and objects the first and the last."""
    yield path
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in dict.fromkeys([*keys[:2], *keys[-1:]]) if len(path) else keys:
        yield from places(value[key], (*path, key))


WRONG = [None, True, -1, "x", [], {"x": {}}]


@pytest.mark.parametrize("name", ["qdeploy.json", "checksums.json", "report.json"])
def test_no_value_of_another_form_is_a_traceback(copy: Path, name: str):
    whole = json.loads((copy / name).read_text())
    tried = 0
    for path in places(whole):
        for wrong in WRONG:
            content = json.loads(json.dumps(whole))
            at = content
            for key in path[:-1]:
                at = at[key]
            if path:
                at[path[-1]] = wrong
            edit(copy / name, lambda _, made=content if path else wrong: made)
            tried += 1
            try:
                look(copy, name)
            except QdeployError as error:
                assert error.what
        (copy / name).write_text(json.dumps(whole))
    assert tried >= 50


def look(copy: Path, name: str) -> None:
    if name == "report.json":
        from qdeploy.proof.compare import recorded_spec
        from qdeploy.registry import artifact_backend

        artifact_backend(copy)
        recorded_spec(copy)
        return
    model = qdeploy.load(copy)
    _ = model.graph
    for tensor in list(model.tensors)[:2]:
        model.tensors[tensor].decode(slice(0, 1))
    _ = Weights(model)
