"""Fuzzes the Python readers by mutation: `python -m tests.hostile.fuzz SECONDS [SEED] [KIND ...]`.

Small sound files (corpus.py) are changed at random: bytes, words, runs of bytes, and the values of JSON by other ones.
What is read of each is all that a conversion reads. A finding is an exception that is none of ours, more than
`CPU` seconds of CPU, more than `MEMORY` bytes, or a crash: the input is kept in build/fuzz-python, and the exit code
is 1. The same seed tries the same inputs, as far as the seconds go.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdeploy.errors import QdeployError, UnsupportedError
from tests.hostile.corpus import CORPUS, json_files

CPU, MEMORY = 5.0, 2 << 30
FOUND = Path(__file__).resolve().parents[2] / "build" / "fuzz-python"
_NUMBERS = (0, 1, -1, 2, 3, 7, 8, 255, 1 << 16, 1 << 31, -(1 << 31), 1 << 40, 1 << 62, 1 << 63, 10**30, 0.5, 1e308)
_OTHERS = ("", "x", "../x", "/etc/passwd", "a\0b", "\ud800", "x" * 3000, None, True, [], {}, [1], {"a": 1}, [[]], "F32")
_WORDS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 16)


class Slow(BaseException):
    """An input that takes too long; not an Exception, so that nothing on the way takes it for an error of a file."""


def read_of(kind: str) -> Callable[[Path], object]:
    """What reads all of a source of a kind."""
    if kind == "npz":
        from qdeploy.calibrate.calibrate import read_data

        return lambda path: read_data(str(path))
    if kind == "pickle":
        from qdeploy.store.folder import Folder
        from qdeploy.store.pickled import read_torch

        return lambda path: read_torch(Folder(path), path.name)
    return _native if kind == "native" else _model


def _native(path: Path) -> None:
    from qdeploy.backends.native.reading import ModelFile

    file = ModelFile(path)
    for index in file.matrices().values():
        file.rows(index, 0, 1)


def _model(path: Path) -> None:
    import qdeploy
    from qdeploy.ir import rules

    model = qdeploy.load(path)
    for name, tensor in model.tensors.items():
        rules.check(tensor, name)
        rules.check_values(tensor, name)
        tensor.decode()
    with contextlib.suppress(UnsupportedError):  # tensors alone have none
        _ = model.graph


# ---- changes


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    """A few bytes, words or runs of a file are others."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        if not out:
            break
        at, how = draw.randrange(len(out)), draw.randrange(6)
        if how == 0:
            out[at] = draw.choice((0, 1, 127, 128, 255))
        elif how == 1:
            out[at] ^= 1 << draw.randrange(8)
        elif how == 2:
            out[at : at + 4] = struct.pack("<I", draw.choice((*_WORDS, draw.getrandbits(32))))
        elif how == 3:
            out[at : at + 8] = struct.pack("<Q", draw.choice((1 << 63, (1 << 64) - 1, 1 << 40, draw.getrandbits(20))))
        elif how == 4:
            del out[at : at + draw.choice((1, 4, 8, 64))]
        else:
            start = draw.randrange(len(out))
            out[at:at] = out[start : start + draw.choice((1, 8, 64))]
    return bytes(out)


def changed_json(value: Any, draw: random.Random) -> Any:
    """One value somewhere is another, is gone, or stands twice."""
    value = json.loads(json.dumps(value))
    holders = [part for part in _parts(value) if part]
    if not holders:
        return draw.choice(_OTHERS)
    holder = draw.choice(holders)
    key = draw.choice(sorted(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    how = draw.random()
    if how < 0.7:
        holder[key] = draw.choice((*_NUMBERS, *_OTHERS))
    elif how < 0.85 or isinstance(holder, list):
        del holder[key]
    else:
        holder[draw.choice(("x", "../y", "a#b", ""))] = holder[key]
    return value


def _parts(value: Any) -> list[Any]:
    """A JSON value and all objects and lists in it."""
    result, waiting = [], [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict | list):
            result.append(part)
            waiting.extend(part.values() if isinstance(part, dict) else part)
    return result


def damage(source: Path, draw: random.Random) -> None:
    """Changes one file of a source."""
    texts = list(json_files(source))
    if texts and draw.random() < 0.6:
        path = draw.choice(texts)
        path.write_text(json.dumps(changed_json(json.loads(path.read_text()), draw)))
    else:
        path = draw.choice([p for p in sorted(source.rglob("*")) if p.is_file()]) if source.is_dir() else source
        path.write_bytes(changed_bytes(path.read_bytes(), draw))
    if (source / "checksums.json").exists():
        from tests.hostile.attacks_files import resummed

        resummed(source)


# ---- one kind, in a process of its own


def fuzz_kind(kind: str, seconds: float, seed: int, keep: Path) -> int:
    """Tries inputs of a kind; prints how many, and returns how many were findings."""
    warnings.simplefilter("ignore")
    read, draw, findings, tried = read_of(kind), random.Random(f"{kind} {seed}"), 0, 0
    sound = CORPUS[kind](keep)
    read(sound)
    _limit()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        work = keep / "try"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        source = work / sound.name
        shutil.copytree(sound, source) if sound.is_dir() else shutil.copy(sound, source)
        damage(source, draw)
        tried += 1
        what = _what_happens(read, source)
        if what:
            findings += 1
            _keep(work, f"{kind}-{seed}-{tried}", what)
    print(f"{kind}: {tried} inputs, {tried / seconds:.0f} per second, {findings} findings", flush=True)
    return findings


def _what_happens(read: Callable[[Path], object], source: Path) -> str:
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU)
    try:
        read(source)
    except QdeployError:
        return ""
    except Slow:
        return f"more than {CPU} s of CPU\n{traceback.format_exc()}"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return ""


def _limit() -> None:
    def slow(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGVTALRM, slow)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))


def _keep(work: Path, name: str, what: str) -> None:
    target = FOUND / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(work, target)
    (target / "WHAT").write_text(what)
    print(f"{name}: {what.strip().splitlines()[-1]}  (kept in {target})", file=sys.stderr, flush=True)


def main(seconds: float, seed: int, kinds: list[str]) -> int:
    """Fuzzes every kind for its share of the seconds, each in a process of its own; 1 where something was found."""
    worst = 0
    for kind in kinds or list(CORPUS):
        with tempfile.TemporaryDirectory(prefix="qdeploy-fuzz-") as folder:
            share = seconds / len(kinds or CORPUS)
            command = [sys.executable, "-m", "tests.hostile.fuzz", "--one", kind, str(share), str(seed), folder]
            status = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode
            if status not in (0, 1):
                _keep(Path(folder) / "try", f"{kind}-{seed}-crash", f"the process ended with {status}")
            worst |= int(status != 0)
    return worst


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        sys.exit(int(bool(fuzz_kind(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])))))
    arguments = sys.argv[1:] or ["60"]
    sys.exit(main(float(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0, arguments[2:]))
