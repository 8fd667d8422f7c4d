"""A fake-quantized checkpoint converts to every target as its codes; inspect names its grid without being asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import qdeploy
from qdeploy.cli import cli
from qdeploy.errors import UnsupportedError

TINY = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-llama-gptq"
GROUP = 32


def q4_0(groups: np.ndarray) -> np.ndarray:
    """Groups on Q4_0's grid."""
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
    step = (extreme / -8).astype(np.float16).astype(np.float32)
    safe = np.where(step == 0, 1, step)
    rounded: np.ndarray = np.clip(np.rint(groups / safe), -8, 7) * step
    return rounded


def q4_1(groups: np.ndarray) -> np.ndarray:
    """Groups on Q4_1's."""
    least = groups.min(1, keepdims=True)
    step = ((groups.max(1, keepdims=True) - least) / 15).astype(np.float16).astype(np.float32)
    offset = least.astype(np.float16).astype(np.float32)
    safe = np.where(step == 0, 1, step)
    rounded: np.ndarray = np.clip(np.rint((groups - offset) / safe), 0, 15) * step + offset
    return rounded


def two_planes(groups: np.ndarray) -> np.ndarray:
    """Groups on 0, a, b and a + b, as DB-LLM begins: a = 2 s, b = -s, and then trained apart."""
    size = np.abs(groups).max(1, keepdims=True) / 2
    one, two = ((size * factor).astype(np.float16).astype(np.float32) for factor in (1.9, -1.05))
    levels = np.concatenate((np.zeros_like(one), one, two, one + two), axis=1)
    nearest = np.abs(groups[:, :, None] - levels[:, None]).argmin(axis=2)
    rounded: np.ndarray = np.take_along_axis(levels, nearest, axis=1)
    return rounded


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's weights in groups of 32 on Q4_0's grid, as bfloat16: a release after training for quantization."""
    return written(tmp_path_factory.mktemp("fake") / "model", q4_0)


def written(folder: Path, rounding: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The example with groups of its weights rounded."""
    folder.mkdir()
    source = qdeploy.load(TINY)
    tensors = {}
    for name, tensor in source.tensors.items():
        x = tensor.decode()
        if x.ndim == 2 and "proj" in name:
            x = rounding(x.reshape(-1, GROUP)).reshape(x.shape)
        tensors[name] = x.astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((TINY / "config.json").read_text())
    config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("to", ["onnx", "native", "ir"])
def test_every_target_holds_the_codes(to: str, checkpoint: Path, tmp_path: Path) -> None:
    check = {} if to == "ir" else {"check": "full"}
    report = qdeploy.convert(checkpoint, tmp_path / "out", to=to, recover="auto", **check)  # type: ignore[arg-type]
    row = report["tensors"]["model.layers.0.mlp.up_proj.weight"]
    assert row["exact"] == "recovered" and row["bits"] < 4.6
    assert any("recovered int4 in groups of 32, scales in f16: 35 tensors" in note for note in report["notes"])
    assert all(check["error"] <= check["limit"] for check in report["checks"])
    assert report["options"]["recover"] == "auto"


@pytest.mark.parametrize("to", ["onnx", "native", "ir"])
@pytest.mark.parametrize(("rounding", "family", "bits"), [(q4_1, "affine4", 5.1), (two_planes, "planes2", 3.1)])
def test_every_target_holds_two_numbers_of_a_group(
    rounding: Callable[[np.ndarray], np.ndarray], family: str, bits: float, to: str, tmp_path: Path
) -> None:
    check = {} if to == "ir" else {"check": "full"}
    folder = written(tmp_path / "model", rounding)
    report = qdeploy.convert(folder, tmp_path / "out", to=to, recover="auto", **check)  # type: ignore[arg-type]
    row = report["tensors"]["model.layers.0.mlp.up_proj.weight"]
    assert row["exact"] == "recovered" and row["bits"] < bits
    assert any(f"recovered {family} in groups of 32, scales in f16: 35 tensors" in note for note in report["notes"])
    assert all(check["error"] <= check["limit"] for check in report["checks"])


def test_verify_recovers_again(checkpoint: Path, tmp_path: Path) -> None:
    qdeploy.convert(checkpoint, tmp_path / "out", to="onnx", recover="int4,group=32")
    output = CliRunner().invoke(cli, ["verify", str(checkpoint), str(tmp_path / "out")])
    assert output.exit_code == 0, output.output


def test_a_package_of_recovered_codes_does_not_claim_to_hold_the_source_files(checkpoint: Path, tmp_path: Path) -> None:
    qdeploy.convert(checkpoint, tmp_path / "package", to="ir", recover="auto")
    with pytest.raises(UnsupportedError, match="byte for byte"):
        qdeploy.convert(tmp_path / "package", tmp_path / "back", to="source")


def test_inspect_names_the_grid(checkpoint: Path, tmp_path: Path) -> None:
    output = CliRunner().invoke(cli, ["inspect", str(checkpoint)])
    assert "4-bit grid of groups of 32" in " ".join(output.output.split()), output.output
    plain = tmp_path / "plain"
    shutil.copytree(checkpoint, plain)
    tensors = load_file(checkpoint / "model.safetensors")
    rng = np.random.default_rng(0)
    noise = {name: rng.normal(size=t.shape).astype(ml_dtypes.bfloat16) for name, t in tensors.items()}
    save_file(noise, plain / "model.safetensors")
    assert "lie on a" not in CliRunner().invoke(cli, ["inspect", str(plain)]).output


def test_a_request_that_nothing_honours_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no weights lie on a grid"):
        qdeploy.convert(checkpoint, tmp_path / "out", to="ir", recover="ternary,group=row")
    assert not (tmp_path / "out").exists()
