"""Sets up the peers once: a virtual environment with onnxruntime-genai's builder, and llama.cpp built from source.

    python bench/peers.py --work DIR [--jobs 2]

Needs pip, cmake and a C++ compiler; about 2.5 GB and, for the compiler, ten minutes of one core. What is there
already is left alone. llama.cpp is the one inside of the source distribution of llama-cpp-python, because a package
index keeps it at a fixed version.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import venv
from dataclasses import dataclass
from pathlib import Path

from measure import arguments

LLAMA_CPP_PYTHON = "0.3.36"
FIRST = ["torch==2.13.0"]
PACKAGES = [
    "transformers==5.23.0",
    "onnxruntime-genai==0.18.0",
    "onnxruntime==1.31.1",
    "onnx==1.23.2",
    "onnx_ir==1.1.0",
    "safetensors==0.8.0",
    "sentencepiece==0.2.3",
    "protobuf==7.36.2",
]
CMAKE = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_TOOLS_INSTALL=OFF",
]


# A compiler that builds for the machine at hand takes AMX from what the processor names; a virtual machine may name it
# and not grant its tiles, and a program that uses them ends by a signal. So there the sets are named, without AMX.
SETS = {
    "avx2": ["AVX", "AVX2", "BMI2"],
    "fma": ["FMA"],
    "f16c": ["F16C"],
    "avx512f": ["AVX512"],
    "avx512_vnni": ["AVX512_VNNI"],
    "avx512_vbmi": ["AVX512_VBMI"],
    "avx512_bf16": ["AVX512_BF16"],
}


def instruction_sets() -> list[str]:
    """CMake's options for what this machine runs."""
    cpu = Path("/proc/cpuinfo")
    flags = set(cpu.read_text().split()) if cpu.exists() else set()
    if "amx_tile" not in flags:
        return ["-DGGML_NATIVE=ON"]
    print("llama.cpp is built without AMX, which this machine may name and not grant", file=sys.stderr)
    return ["-DGGML_NATIVE=OFF", *(f"-DGGML_{s}=ON" for flag, sets in SETS.items() if flag in flags for s in sets)]


@dataclass(frozen=True)
class Peers:
    """Where the peers lie."""

    root: Path

    @property
    def python(self) -> Path:
        """The interpreter with torch, transformers and onnxruntime-genai."""
        return self.root / "venv" / "bin" / "python"

    @property
    def llama_cpp(self) -> Path:
        """Source tree of llama.cpp."""
        return self.root / f"llama_cpp_python-{LLAMA_CPP_PYTHON}" / "vendor" / "llama.cpp"

    @property
    def quantizer(self) -> Path:
        """The program llama-quantize."""
        return self.root / "build" / "bin" / "llama-quantize"

    @property
    def bench(self) -> Path:
        """The program llama-bench."""
        return self.root / "build" / "bin" / "llama-bench"

    @property
    def converter(self) -> Path:
        """The script convert_hf_to_gguf.py."""
        return self.llama_cpp / "convert_hf_to_gguf.py"

    @property
    def builder(self) -> list[str | Path]:
        """The command that starts onnxruntime-genai's model builder."""
        return [self.python, "-m", "onnxruntime_genai.models.builder"]

    def require(self, *paths: Path) -> None:
        """Ends the program with a hint where something is missing."""
        missing = [p for p in paths if not p.exists()]
        if missing:
            sys.exit(f"missing: {missing[0]}\nrun first: python {Path(__file__).parent / 'peers.py'} --work DIR")


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds --peers."""
    parser.add_argument("--peers", type=Path, help="folder of the peers [WORK/peers]")


def found(options: argparse.Namespace) -> Peers:
    """The peers of the parsed options."""
    return Peers((options.peers or options.work / "peers").absolute())


def set_up(peers: Peers, jobs: int) -> None:
    """Installs and builds what is not there yet; everything runs at the lowest priority."""
    peers.root.mkdir(parents=True, exist_ok=True)
    os.nice(19)
    if not peers.python.exists():
        venv.create(peers.root / "venv", with_pip=True)
        _pip(peers, "install", *FIRST)  # first, so that nothing else chooses its version
    _pip(peers, "install", *FIRST, *PACKAGES)
    if not peers.converter.exists():
        _unpack(peers)
    if not (peers.quantizer.exists() and peers.bench.exists()):
        build = peers.root / "build"
        subprocess.run(["cmake", "-S", peers.llama_cpp, "-B", build, *CMAKE, *instruction_sets()], check=True)
        programs = ["llama-quantize", "llama-bench"]
        subprocess.run(["cmake", "--build", build, "--target", *programs, "-j", str(jobs)], check=True)


def _unpack(peers: Peers) -> None:
    sdist = peers.root / "sdist"
    name = f"llama-cpp-python=={LLAMA_CPP_PYTHON}"
    if not list(sdist.glob("*.tar.gz")):
        _pip(peers, "download", "--no-deps", "--no-binary", ":all:", "-d", str(sdist), name)
    with tarfile.open(next(sdist.glob("*.tar.gz"))) as archive:
        archive.extractall(peers.root, filter="data")


def _pip(peers: Peers, *arguments: str) -> None:
    subprocess.run([peers.python, "-m", "pip", "--quiet", *arguments], check=True)


def main() -> None:
    parser = arguments(__doc__)
    add_option(parser)
    parser.add_argument("--jobs", type=int, default=1, help="compiler processes [%(default)s]")
    options = parser.parse_args()
    peers = found(options)
    set_up(peers, options.jobs)
    subprocess.run([peers.python, "-m", "pip", "list"], check=True)
    print(f"llama.cpp of llama-cpp-python {LLAMA_CPP_PYTHON}: {peers.quantizer}")


if __name__ == "__main__":
    main()
