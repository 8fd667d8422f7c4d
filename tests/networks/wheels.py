"""Networks that come inside of public wheels: where they are, and inputs like those that they were made for."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

WHEELS = {
    "silero-vad": "6.2.3",
    "magika": "1.0.3",
    "rapidocr-onnxruntime": "1.4.4",
    "nudenet": "3.4.2",
    "ddddocr": "1.6.1",
    "mediapipe": "0.10.21",
}
_PLATFORM = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--only-binary=:all:")


@dataclass(frozen=True)
class Published:
    """A network: the wheel that it comes in, its path there, and its inputs.

    `inputs` are shapes by name, of an image unless `kind` says otherwise; empty: the network has one input of fixed
    shape.
    """

    wheel: str
    path: str
    kind: str = "image"
    shape: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.path).name


ONNX = [
    Published("silero-vad", "silero_vad/data/silero_vad.onnx", "voice"),
    Published("silero-vad", "silero_vad/data/silero_vad_16k_op15.onnx", "voice"),
    Published("silero-vad", "silero_vad/data/silero_vad_half.onnx", "voice"),
    Published("silero-vad", "silero_vad/data/silero_vad_op18_ifless.onnx", "voice"),
    Published("magika", "magika/models/standard_v3_3/model.onnx", "bytes"),
    Published("rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", shape=(1, 3, 160, 224)),
    Published("rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", shape=(1, 3, 48, 160)),
    Published(
        "rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", shape=(1, 3, 48, 192)
    ),
    Published("nudenet", "nudenet/320n.onnx", shape=(1, 3, 320, 320)),
    Published("ddddocr", "ddddocr/common.onnx", shape=(1, 1, 64, 160)),
    Published("ddddocr", "ddddocr/common_det.onnx", shape=(1, 3, 416, 416)),
    Published("ddddocr", "ddddocr/common_old.onnx", shape=(1, 1, 64, 160)),
]
TFLITE = [
    Published("mediapipe", f"mediapipe/modules/{path}.tflite")
    for path in (
        "face_detection/face_detection_full_range_sparse",
        "face_detection/face_detection_short_range",
        "face_landmark/face_landmark",
        "hand_landmark/hand_landmark_full",
        "hand_landmark/hand_landmark_lite",
        "holistic_landmark/hand_recrop",
        "iris_landmark/iris_landmark",
        "palm_detection/palm_detection_full",
        "palm_detection/palm_detection_lite",
        "pose_detection/pose_detection",
        "pose_landmark/pose_landmark_full",
        "selfie_segmentation/selfie_segmentation",
        "selfie_segmentation/selfie_segmentation_landscape",
    )
]
OWN_OPERATORS = Published("mediapipe", "mediapipe/modules/face_landmark/face_landmark_with_attention.tflite")
"""Has operators of MediaPipe alone, which no other runtime has."""


def fetched(network: Published, folder: Path) -> Path:
    """The file of a network, out of its wheel, which is fetched into the folder once; nothing of it is installed."""
    version = WHEELS[network.wheel]
    pattern = f"{network.wheel.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *_PLATFORM, "-d", str(folder)]
        done = subprocess.run([*command, f"{network.wheel}=={version}"], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{network.wheel} {version} cannot be fetched: {done.stderr.strip()[-200:]}")
    (wheel,) = folder.glob(pattern)
    path = folder / network.wheel / network.name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(network.path))
    return path


def image(shape: tuple[int, ...], channels_last: bool, seed: int = 0) -> np.ndarray:
    """Smooth shapes on a gradient, as photographs have: float32 between 0 and 1."""
    rng = np.random.default_rng(seed)
    height, width = shape[1:3] if channels_last else shape[2:4]
    depth = shape[3] if channels_last else shape[1]
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = []
    for _ in range(depth):
        plane = 0.3 * x + 0.2 * y
        for _ in range(6):
            cx, cy, size, level = rng.random(4)
            plane = plane + (level - 0.4) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (0.02 + 0.05 * size))
        planes.append(plane)
    picture = np.clip(np.stack(planes) + 0.02 * rng.standard_normal((depth, height, width)), 0, 1)
    picture = picture.transpose(1, 2, 0) if channels_last else picture
    return np.broadcast_to(picture, shape).astype(np.float32)


def writing(shape: tuple[int, ...]) -> np.ndarray:
    """A line of dark letters on light paper, as large as fits: float32 between 0 and 1, channels first."""
    paper = Image.new("L", (shape[3], shape[2]), 230)
    letters = ImageFont.load_default(size=min(shape[2] // 2, shape[3] // 5))
    ImageDraw.Draw(paper).text((shape[3] // 12, shape[2] // 4), "Edge 42", fill=20, font=letters)
    return np.broadcast_to(np.asarray(paper, np.float32) / 255, shape).astype(np.float32)


def voice(count: int, seed: int = 0) -> np.ndarray:
    """Harmonics of a gliding tone under an envelope, as a vowel has them: float32 [1, count] at 16 kHz."""
    rng, t = np.random.default_rng(seed), np.arange(count) / 16000
    phase = 2 * np.pi * (120 + 20 * rng.random()) * (t + 0.1 * t**2)
    tone = sum(np.sin(k * phase + rng.random()) / k for k in range(1, 12))
    return (0.2 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t)) + 0.003 * rng.standard_normal(count)).astype(
        np.float32
    )[None]


def inputs(
    network: Published, declared: list[tuple[str, tuple[int | str, ...]]], seed: int = 0
) -> dict[str, np.ndarray]:
    """An array for each input, by the names and shapes that a runtime says."""
    arrays: dict[str, np.ndarray] = {}
    for name, shape in declared:
        if network.kind == "bytes":
            text = (Path(__file__).read_bytes() * 4)[: int(shape[1])]
            arrays[name] = np.frombuffer(text, np.uint8).astype(np.int32)[None]
        elif network.kind == "voice":
            count = 512 if "16k" not in network.name and "half" not in network.name else 512 + 64
            speech = voice(count + 64 if "vad.onnx" in network.name else count, seed)[:, :count]
            arrays[name] = {"sr": np.array(16000, np.int64), "state": np.zeros((2, 1, 128), np.float32)}.get(
                name, speech
            )
        else:
            size = network.shape or tuple(n if isinstance(n, int) else 1 for n in shape)
            reads = network.wheel in ("rapidocr-onnxruntime", "ddddocr")
            arrays[name] = 2 * writing(size) - 1 if reads else image(size, network.wheel == "mediapipe", seed)
    return arrays
