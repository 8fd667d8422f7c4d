"""The CMake toolchain files say what they promise; without NDK and Xcode, that is as far as it can be held here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime.conftest import RUNTIME, need, run

ANDROID, IOS = RUNTIME / "cmake" / "android-arm64.cmake", RUNTIME / "cmake" / "ios-arm64.cmake"


def said(tmp_path: Path, toolchain: Path, *names: str, **given: object) -> dict[str, str]:
    """The variables that a toolchain file sets, by CMake's script mode."""
    script = tmp_path / "say.cmake"
    lines = [f'message(STATUS "{name}=${{{name}}}")' for name in names]
    script.write_text("\n".join([f'include("{toolchain}")', *lines]))
    output = run(need("cmake"), *(f"-D{key}={value}" for key, value in given.items()), "-P", script)
    return dict(line.removeprefix("-- ").split("=", 1) for line in output.splitlines() if "=" in line)


@pytest.fixture
def ndk(tmp_path: Path) -> Path:
    """A folder that looks like an NDK; its toolchain is the cross compiler of the machine."""
    folder = tmp_path / "ndk" / "build" / "cmake"
    folder.mkdir(parents=True)
    compiler = shutil.which("aarch64-linux-gnu-g++") or "none"
    (folder / "android.toolchain.cmake").write_text(
        f"set(CMAKE_SYSTEM_NAME Linux)\nset(CMAKE_SYSTEM_PROCESSOR aarch64)\nset(CMAKE_CXX_COMPILER {compiler})\n"
    )
    return tmp_path / "ndk"


def test_android_asks_the_ndk_for_arm64(tmp_path: Path, ndk: Path):
    result = said(
        tmp_path, ANDROID, "ANDROID_ABI", "ANDROID_PLATFORM", "ANDROID_STL", "CMAKE_SYSTEM_NAME", ANDROID_NDK=ndk
    )
    assert result == {
        "ANDROID_ABI": "arm64-v8a",
        "ANDROID_PLATFORM": "android-26",
        "ANDROID_STL": "c++_static",
        "CMAKE_SYSTEM_NAME": "Linux",
    }
    assert said(tmp_path, ANDROID, "ANDROID_PLATFORM", ANDROID_NDK=ndk, ANDROID_PLATFORM="android-30") == {
        "ANDROID_PLATFORM": "android-30"
    }


def test_a_missing_ndk_is_named(tmp_path: Path):
    outside = {key: value for key, value in os.environ.items() if not key.startswith("ANDROID_NDK")}
    command = [need("cmake"), f"-DANDROID_NDK={tmp_path}", "-P", str(ANDROID)]
    done = subprocess.run(command, capture_output=True, text=True, env=outside)
    assert done.returncode != 0 and "ANDROID_NDK" in done.stderr


def test_the_runtime_configures_with_the_android_file_and_builds_with_a_real_ndk(tmp_path: Path, ndk: Path):
    need("aarch64-linux-gnu-g++")
    real = os.environ.get("ANDROID_NDK_HOME")
    options = [f"-DCMAKE_TOOLCHAIN_FILE={ANDROID}", f"-DANDROID_NDK={real or ndk}"]
    run(need("cmake"), "-S", RUNTIME, "-B", tmp_path / "build", *options)
    if real:  # the stand-in only says what would be compiled with
        run(need("cmake"), "--build", tmp_path / "build", seconds=900)
        assert (tmp_path / "build" / "libqdeploy.so").is_file()
    else:
        assert "aarch64-linux-gnu" in (tmp_path / "build" / "CMakeCache.txt").read_text()


def test_ios_is_a_static_arm64_build_for_a_phone_or_the_simulator(tmp_path: Path):
    names = ("CMAKE_SYSTEM_NAME", "CMAKE_OSX_ARCHITECTURES", "CMAKE_OSX_SYSROOT", "CMAKE_TRY_COMPILE_TARGET_TYPE")
    assert list(said(tmp_path, IOS, *names).values()) == ["iOS", "arm64", "iphoneos", "STATIC_LIBRARY"]
    simulator = said(tmp_path, IOS, "CMAKE_OSX_SYSROOT", QDEPLOY_IOS_SDK="iphonesimulator")
    assert simulator == {"CMAKE_OSX_SYSROOT": "iphonesimulator"}
