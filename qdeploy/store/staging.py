"""The folder in which an output is made, the lock that goes with it, and the step that gives the output its name.

A staging folder stands beside its output, is made exclusively, and has a name that no user has: `.qdeploy-<hash of the
output's name>-<random>`. A file inside it holds the hash of the plan: by that an interrupted run is found again, and by
that (and by nothing else) a folder is known to be one of these. Links are never followed.

    lock       .qdeploy-<hash>.lock. Whoever holds it checks that the name still leads to the file that is locked: the
               last holder may have removed it in between
    exchange   renameat2 with RENAME_EXCHANGE: the output's name always leads to a whole output. Where the system has no
               such call, the old output is moved aside first
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from qdeploy.errors import OutputError

MARK = "plan.sha256"
_HEX = re.compile(rb"[0-9a-f]{64}")
_NO_REPLACE, _EXCHANGE, _AT_FDCWD = 1, 2, -100
_TRIES = 100


def prefix(target: Path) -> str:
    """What the names of an output's staging folders and lock begin with."""
    return f".qdeploy-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}"


def prepare(target: Path, plan: str, is_output: Callable[[Path], bool]) -> tuple[Path, bool]:
    """The staging folder for a plan, made or found again; those of other plans are removed.

    Args:
        target: The output.
        plan: What identifies the work.
        is_output: Whether a folder is an output of this program: what an exchange left behind when it was killed.

    Returns:
        The folder, and whether an earlier run has worked in it.
    """
    identity = hashlib.sha256(plan.encode()).hexdigest().encode()
    kept: Path | None = None
    for folder in _left(target):
        mark = _mark(folder)
        if mark == identity and kept is None:
            kept = folder
        elif mark is not None or is_output(folder):
            shutil.rmtree(folder)
    if kept is not None:
        return kept, True
    staging = target.with_name(f"{prefix(target)}-{os.urandom(8).hex()}")
    os.mkdir(staging)  # fails where anything has the name, a link included
    descriptor = os.open(staging / MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        os.write(descriptor, identity)
    finally:
        os.close(descriptor)
    return staging, False


def _left(target: Path) -> Iterator[Path]:
    """Real folders beside an output that have the name of its staging folders."""
    form = re.compile(re.escape(prefix(target)) + r"-[0-9a-f]{16}")
    for entry in sorted(os.scandir(target.parent), key=lambda entry: entry.name):
        if form.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            yield target.with_name(entry.name)


def _mark(folder: Path) -> bytes | None:
    try:
        descriptor = os.open(folder / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        text = os.read(descriptor, 65) if regular else b""
    finally:
        os.close(descriptor)
    return text if _HEX.fullmatch(text) else None


# ---- names


def rename(old: Path, new: Path) -> None:
    """Gives a folder a name that nothing has; OSError with EEXIST where something does."""
    if not _renameat2(old, new, _NO_REPLACE):
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
        os.rename(old, new)


def exchange(work: Path, target: Path) -> Path:
    """Puts a folder in the place of another one.

    Returns:
        Where the other one is now.
    """
    if _renameat2(work, target, _EXCHANGE):
        return work
    aside = target.with_name(f"{prefix(target)}-{os.urandom(8).hex()}")
    os.rename(target, aside)
    os.rename(work, target)
    return aside


def _renameat2(old: Path, new: Path, flags: int) -> bool:
    """The system call; False where the system or the file system does not have it."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(new))


# ---- the lock


def lock(path: Path) -> int:
    """Takes the lock of an output; OutputError where another process has it."""
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise OutputError("another process is writing this output", where=str(path)) from error
            raise
        if _leads_to(path, descriptor):
            return descriptor
        os.close(descriptor)  # the last holder removed the file that this one had opened
    raise OutputError("another process is writing this output", where=str(path))


def unlock(descriptor: int, path: Path) -> None:
    """Gives the lock back; the file goes while it is still locked."""
    if _leads_to(path, descriptor):
        path.unlink(missing_ok=True)
    os.close(descriptor)


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))
