"""The fuzzer itself: what it finds is kept with its input, and what is an error of ours is none."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qdeploy.errors import BadFileError
from tests.hostile import fuzz
from tests.hostile.attacks_safetensors import ROOT
from tests.hostile.corpus import CORPUS


def _spins(_: Path) -> None:
    while True:
        pass


def _refuses(_: Path) -> None:
    raise BadFileError("no")


def _fails(_: Path) -> None:
    raise ValueError("not ours")


@pytest.mark.parametrize(("read", "word"), [(_fails, "not ours"), (_spins, "s of CPU"), (_refuses, "")])
def test_what_is_a_finding(read: Callable[[Path], None], word: str, monkeypatch: pytest.MonkeyPatch):
    import signal

    def slow(*_: object) -> None:
        raise fuzz.Slow

    monkeypatch.setattr(fuzz, "CPU", 0.2)
    before = signal.signal(signal.SIGVTALRM, slow)
    try:
        what = fuzz._what_happens(read, Path())
    finally:
        signal.signal(signal.SIGVTALRM, before)
    assert word in what if word else not what


@pytest.mark.parametrize("kind", CORPUS)
def test_the_corpus_is_sound_small_and_the_same_seed_damages_it_alike(kind: str, tmp_path: Path):
    damaged = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        source = CORPUS[kind](tmp_path / name)
        fuzz.read_of(kind)(source)
        files = [f for f in sorted(source.rglob("*")) if f.is_file()] if source.is_dir() else [source]
        assert sum(f.stat().st_size for f in files) < 1 << 20
        fuzz.damage(source, random.Random(7))
        damaged.append({f.name: f.read_bytes() for f in files if f.exists() and f.suffix not in (".npz", ".pt")})
    assert damaged[0] == damaged[1]


def test_the_command_fuzzes_and_ends_well():
    command = [sys.executable, "-m", "tests.hostile.fuzz", "4", "0", "safetensors", "gguf"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("0 findings") == 2
