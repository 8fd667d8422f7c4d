"""Output appears whole or not at all.

Work happens in `<name>.partial` beside the output, under a lock; at the end everything is made durable and the folder
renamed. An interrupted run leaves the partial folder, which the next run of the same work (same `plan`) continues and
any other run discards; the final name never holds half of anything. An existing output is refused, or, with `force`,
moved aside and removed only after the new one stands.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qdeploy.errors import OutputError

REPORT = "report.json"
"""What every output holds: the report of its conversion, by which it is known."""
_PLAN = "plan.sha256"


class Staged:
    """An output folder that is being made.

    Attributes:
        path: Where to write until `commit`.
        resumed: Whether files of an earlier run with the same plan are there.
    """

    def __init__(self, target: Path, path: Path, resumed: bool) -> None:
        self.target, self.path, self.resumed = target, path, resumed

    def write(self, name: str, chunks: Iterable[Any], hashed: bool = True) -> str:
        """Writes a file from buffers (bytes or contiguous arrays), durable and under its name only when whole.

        Returns:
            The SHA-256 of its content, as hex; of nothing where the caller hashes its parts himself.
        """
        digest = hashlib.sha256()
        final = self.path / name
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(final.name + ".tmp")
        with open(temporary, "wb", buffering=0) as file:
            for chunk in chunks:
                view = memoryview(chunk).cast("B")
                if hashed:
                    digest.update(view)
                write_all(file.fileno(), view)
            os.fsync(file.fileno())
        os.replace(temporary, final)
        return digest.hexdigest()

    def write_json(self, name: str, content: Any) -> str:
        """Writes JSON, one key per line at the top level: readable, and the same bytes for the same content."""
        return self.write(name, [json_bytes(content)])


def json_bytes(content: Any) -> bytes:
    """JSON whose two outer levels stand on lines of their own; keys in the order given."""
    if not isinstance(content, dict):
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    rows = []
    for key, value in content.items():
        head = json.dumps(key, ensure_ascii=False)
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {json.dumps(k, ensure_ascii=False)}: {_compact(v)}" for k, v in value.items())
            rows.append(f" {head}: {{\n{inner}\n }}")
        elif isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            inner = ",\n".join(f"  {_compact(v)}" for v in value)
            rows.append(f" {head}: [\n{inner}\n ]")
        else:
            rows.append(f" {head}: {_compact(value)}")
    return ("{\n" + ",\n".join(rows) + "\n}\n").encode()


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write_all(descriptor: int, view: memoryview, at: int | None = None) -> None:
    """Writes every byte (os.write may write fewer), at an offset if one is given."""
    done = 0
    while done < len(view):
        part = view[done:]
        done += os.write(descriptor, part) if at is None else os.pwrite(descriptor, part, at + done)


@contextmanager
def staged(target: Path, plan: str, force: bool = False, keep: bool = True, only: str = "") -> Iterator[Staged]:
    """An output folder that becomes `target` when the block ends well, or of which one file does.

    Args:
        target: The final path.
        plan: What identifies this piece of work; only a partial folder of the same plan is continued.
        force: Replace an existing output.
        keep: Leave the partial folder after an error, so that the next run can continue.
        only: The file of the folder that becomes `target`; empty: the folder itself.

    Raises:
        OutputError: The output exists, another process is making it, or the system refuses to write.
    """
    refuse_existing(target, force, bool(only))
    work = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(target.with_name(f".{target.name}.lock"))
    except OSError as error:
        raise _system(error, target.parent) from error
    try:
        resumed = _prepare(work, plan)
        yield Staged(target, work, resumed)
        _commit_file(work, target, only) if only else _commit(work, target)
    except OSError as error:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
        raise _system(error, work) from error
    except BaseException:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        _unlock(lock, target.with_name(f".{target.name}.lock"))


def write_json(target: Path, content: Any, force: bool = False) -> None:
    """Writes one file of JSON, whole or not at all; raises as `staged` does."""
    with staged(target, os.urandom(8).hex(), force, keep=False, only=target.name) as stage:
        stage.write_json(target.name, content)


def refuse_existing(target: Path, force: bool, file: bool = False) -> None:
    """Refuses an output that exists; with `force`, one that does not look like an output (it may be a home folder).

    With `file`, the output is a file, and only a file is replaced.
    """
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputError("the output exists", where=str(target), todo="Choose another name, or pass --force.")
    if file and target.is_file() and not target.is_symlink():
        return
    made = target.is_dir() and not target.is_symlink() and (not any(target.iterdir()) or (target / REPORT).is_file())
    if file or not made:
        raise OutputError(
            "what exists there was not written by a conversion, so it is not replaced",
            where=str(target),
            allowed="a file" if file else f"an empty folder, or one with a {REPORT}",
            todo="Remove it yourself, or choose another name.",
        )


def _prepare(work: Path, plan: str) -> bool:
    mark = work / _PLAN
    identity = hashlib.sha256(plan.encode()).hexdigest()
    if mark.is_file() and mark.read_text() == identity:
        return True
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    mark.write_text(identity)
    return False


def _commit(work: Path, target: Path) -> None:
    (work / _PLAN).unlink()
    for leftover in [*work.rglob("*.tmp"), *work.rglob("*.done")]:
        leftover.unlink()
    _sync_folder(work)
    aside = target.with_name(target.name + ".old")
    if target.exists():
        if aside.exists():
            _remove(aside)
        os.replace(target, aside)
    os.replace(work, target)
    _sync_folder(target.parent)
    if aside.exists():
        _remove(aside)


def _commit_file(work: Path, target: Path, name: str) -> None:
    os.replace(work / name, target)  # an existing file is replaced in one step
    _sync_folder(target.parent)
    shutil.rmtree(work)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise OutputError("another process is writing this output", where=str(path)) from error
        raise
    return descriptor


def _unlock(descriptor: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)


def _system(error: OSError, where: Path) -> OutputError:
    todo = {
        errno.ENOSPC: "Free some space and run the same command again: finished shards are kept.",
        errno.EACCES: "Choose a folder that you may write to.",
        errno.EROFS: "Choose a folder that you may write to.",
    }.get(error.errno or 0, "")
    return OutputError(f"the system refused to write: {error.strerror}", where=str(error.filename or where), todo=todo)
