"""The promise, end to end: what was imported is written again, and every source file is the same byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import qdeploy
from qdeploy.errors import BadArgumentError

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("gptq*", "awq*", "gguf*", "base*", "autoround-gptq*", "autoround-w3*")


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def back_again(source: Path, tmp_path: Path) -> dict[str, bytes]:
    report = qdeploy.convert(source, tmp_path / "package", to="ir")
    for level, count in report["lossless"].items():
        assert count["proven"] == count["of"] > 0, level
    qdeploy.convert(tmp_path / "package", tmp_path / "back", to="source")
    return contents(tmp_path / "back")


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_every_checkpoint_comes_back(testdata: Path, tmp_path: Path, kind: str):
    result = sorted((testdata / "checkpoints").glob(kind))
    assert result
    for source in result:
        assert back_again(source, tmp_path / source.name) == contents(source), source.name


def test_every_file_of_the_trained_models_comes_back(testdata: Path, tmp_path: Path):
    results = [
        *(testdata / "lm").iterdir(),
        *(testdata / "quantized/gguf").iterdir(),
        ROOT / "examples/models/tiny-llama",
    ]
    for source in results:
        assert back_again(source, tmp_path / source.name) == contents(source), source.name


def test_bytes_that_no_encoder_writes_are_kept_as_residue(tmp_path: Path):
    import gguf

    (tmp_path / "source").mkdir()
    raw = np.random.default_rng(0).integers(0, 256, (8, 54), np.uint8)  # of 256 bytes, 13 are no five trits
    raw[:, 52:] = np.array([0.5], np.float16).view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "source/model.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=gguf.GGMLQuantizationType.TQ1_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert back_again(tmp_path / "source", tmp_path) == contents(tmp_path / "source")
    assert (tmp_path / "package/residue.safetensors").exists()


def test_only_a_package_can_be_written_back(tmp_path: Path):
    with pytest.raises(BadArgumentError, match="package"):
        qdeploy.convert(ROOT / "examples/models/tiny-llama", tmp_path / "out", to="source")


def test_an_interrupted_import_proves_what_it_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The proof of a finished shard is kept with it: a resumed run proves no less than an uninterrupted one."""
    from qdeploy.ir import package_write

    monkeypatch.setattr(package_write, "SHARD_BYTES", 200_000)
    monkeypatch.setattr(package_write.plan_package, "__defaults__", (200_000,))
    source = ROOT / "examples/models/tiny-llama-gptq"
    real, written = package_write._write_shard, []

    def interrupted(shard, stage, progress):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.file)
        return real(shard, stage, progress)

    monkeypatch.setattr(package_write, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        qdeploy.convert(source, tmp_path / "out", to="ir")
    assert not (tmp_path / "out").exists()
    resumed: list[str] = []
    monkeypatch.setattr(package_write, "_write_shard", lambda s, *rest: resumed.append(s.file) or real(s, *rest))
    report = qdeploy.convert(source, tmp_path / "out", to="ir")
    assert not set(resumed) & set(written)
    assert report["lossless"]["file bytes"] == {"proven": 1, "of": 1}
    assert qdeploy.verify(source, tmp_path / "out")["equal"]


def test_a_changed_source_is_never_mixed_with_an_interrupted_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from qdeploy.ir import package_write

    (tmp_path / "source").mkdir()
    weights = {f"w{i}": np.full((64, 64), i, np.float32) for i in range(4)}
    save_file(weights, tmp_path / "source/model.safetensors")
    monkeypatch.setattr(package_write.plan_package, "__defaults__", (20_000,))
    real = package_write._manifest
    monkeypatch.setattr(package_write, "_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        qdeploy.convert(tmp_path / "source", tmp_path / "out", to="ir")
    monkeypatch.setattr(package_write, "_manifest", real)
    save_file({name: w + 10 for name, w in weights.items()}, tmp_path / "source/model.safetensors")
    qdeploy.convert(tmp_path / "source", tmp_path / "out", to="ir")
    assert qdeploy.load(tmp_path / "out").tensors["w2"].decode()[0, 0] == 12
