"""Output appears whole or not at all.

Work happens in a staging folder beside the output, under a lock (`staging.py`); at the end everything is made durable
and the folder gets the output's name. An interrupted run leaves the staging folder, which the next run of the same work
(same `plan`) continues and any other run discards; the final name never holds half of anything. An existing output is
refused, or, with `force`, replaced, where it is one that this program wrote and nobody changed: its report names the
hash of its content (`content_hash`). Reports of versions before that are known by their fields.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qdeploy.errors import OutputError, QdeployError
from qdeploy.store.folder import Folder, parse_json
from qdeploy.store.report_form import REPORT, is_report
from qdeploy.store.staging import MARK, exchange, lock, prefix, prepare, rename, unlock

_HEAD = 64 << 10
_lock, _unlock = lock, unlock


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
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb", buffering=0) as file:
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


def finite(content: Any) -> Any:
    """JSON values with infinities and NaN as the texts "Infinity", "-Infinity" and "NaN": JSON has no such numbers."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return json.dumps(content)
    return content


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
def staged(
    target: Path, plan: str, force: bool = False, keep: bool = True, only: str = "", magic: bytes = b""
) -> Iterator[Staged]:
    """An output folder that becomes `target` when the block ends well, or of which one file does.

    Args:
        target: The final path.
        plan: What identifies this piece of work; only a partial folder of the same plan is continued.
        force: Replace an existing output.
        keep: Leave the partial folder after an error, so that the next run can continue.
        only: The file of the folder that becomes `target`; empty: the folder itself.
        magic: What a file that `force` replaces begins with; empty: such a file is .json.

    Raises:
        OutputError: The output exists, another process is making it, or the system refuses to write.
    """
    refuse_existing(target, force, bool(only), magic)
    lock_file = target.with_name(f"{prefix(target)}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = lock(lock_file)
    except OSError as error:
        raise _system(error, target.parent) from error
    work: Path | None = None
    try:
        work, resumed = prepare(target, plan, is_output)
        yield Staged(target, work, resumed)
        refuse_existing(target, force, bool(only), magic)  # what stands there now may not be what stood there before
        _commit_file(work, target, only) if only else _commit(work, target)
    except BaseException as error:
        if not keep and work is not None:
            shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError):
            raise _system(error, work or target) from error
        raise
    finally:
        unlock(descriptor, lock_file)


def write_json(target: Path, content: Any, force: bool = False) -> None:
    """Writes one file of JSON, whole or not at all; raises as `staged` does."""
    with staged(target, os.urandom(8).hex(), force, keep=False, only=target.name) as stage:
        stage.write_json(target.name, content)


def refuse_existing(target: Path, force: bool, file: bool = False, magic: bytes = b"") -> None:
    """Refuses an output that exists; with `force`, one that this program did not write, or that was changed since.

    With `file`, the output is a file, and only a file is replaced: one that begins with `magic`, or else JSON.
    """
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputError("the output exists", where=str(target), todo="Choose another name, or pass --force.")
    if is_output_file(target, magic) if file else is_output(target):
        return
    allowed = "a model file, or .json" if file else f"an empty folder, or an output with the {REPORT} of its conversion"
    raise OutputError(
        "what exists there was not written by a conversion, or was changed since, so it is not replaced",
        where=str(target),
        allowed=allowed,
        todo="Remove it yourself, or choose another name.",
    )


def is_output(folder: Path) -> bool:
    """Whether a folder is empty, or an output of this program as it was written."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        report = Folder(folder).json(REPORT)
    except QdeployError:
        return False
    if not is_report(report):
        return False
    return "content" not in report or report["content"] == content_hash(folder)


def is_output_file(path: Path, magic: bytes) -> bool:
    """Whether a file begins with a magic number; without one, whether it is named .json and holds a JSON object."""
    if path.is_symlink() or not path.is_file() or not (magic or path.suffix == ".json"):
        return False
    try:
        file = Folder(path, trust_links=True).open(path.name)
        try:
            if magic:
                return file.read(0, min(file.size, len(magic))) == magic
            return isinstance(parse_json(file.read(0, min(file.size, 64 << 20)), path.name), dict)
        finally:
            file.close()
    except QdeployError:
        return False


def content_hash(folder: Path) -> str:
    """SHA-256 over the name, the size and the first 64 KiB of every file of an output, its report left out."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()):
        name = path.relative_to(folder).as_posix()
        if name in (REPORT, MARK) or name.endswith((".tmp", ".done")):
            continue
        digest.update(os.fsencode(name) + b"\0")
        if path.is_symlink() or not path.is_file():
            digest.update(b"not a file")
            continue
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        digest.update(path.stat().st_size.to_bytes(8, "little") + head)
    return digest.hexdigest()


def _commit(work: Path, target: Path) -> None:
    (work / MARK).unlink()
    for leftover in [*work.rglob("*.tmp"), *work.rglob("*.done")]:
        leftover.unlink()
    _sync_folder(work)
    replaced = os.path.lexists(target)
    aside = exchange(work, target) if replaced else None
    if not replaced:
        rename(work, target)
    _sync_folder(target.parent)
    if aside is not None:
        shutil.rmtree(aside)


def _commit_file(work: Path, target: Path, name: str) -> None:
    os.replace(work / name, target)  # an existing file is replaced in one step
    _sync_folder(target.parent)
    shutil.rmtree(work)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system(error: OSError, where: Path) -> OutputError:
    todo = {
        errno.ENOSPC: "Free some space and run the same command again: finished shards are kept.",
        errno.EACCES: "Choose a folder that you may write to.",
        errno.EROFS: "Choose a folder that you may write to.",
    }.get(error.errno or 0, "")
    return OutputError(f"the system refused to write: {error.strerror}", where=str(error.filename or where), todo=todo)
